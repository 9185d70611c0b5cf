"""Weights and adapters on the GPU, exact to the allocator, after loading, preparing and adding adapters."""

from __future__ import annotations

from dataclasses import replace

from qlora_planner.catalog import DTYPE_BYTES, SCHEMES, quantized_tensor_bytes
from qlora_planner.errors import InputError
from qlora_planner.memory.allocator.caching import block_bytes
from qlora_planner.memory.weights.targets import adaptable, check_adaptable, matches, targets_of
from qlora_planner.memory.weights.trainable import Trainable
from qlora_planner.record import record
from qlora_planner.spec.model import AdapterTensor, ModelProfile, TensorGroup
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import listed, quoted


@record
class StaticMemory:
    """Live bytes as torch counts them. `prepared` equals `loaded` without upcasting."""

    packed_weights: int
    constants: int
    unquantized_loaded: int
    unquantized_prepared: int
    buffers: int
    adapters: int
    largest_upcast: int  # the largest tensor that preparing casts, in bytes after the cast
    largest_loaded: int  # the largest 16-bit tensor that loading holds beside its quantised form
    trainable: tuple[Trainable, ...]

    @property
    def after_load(self) -> int:
        return self.packed_weights + self.constants + self.unquantized_loaded + self.buffers

    @property
    def after_prepare(self) -> int:
        return self.packed_weights + self.constants + self.unquantized_prepared + self.buffers

    @property
    def after_adapters(self) -> int:
        return self.after_prepare + self.adapters


def load_dtype(run: RunConfig) -> str:
    """The dtype that unquantised weights are loaded in."""
    return run.load_dtype or "bfloat16"


def is_quantized(group: TensorGroup, run: RunConfig) -> bool:
    """Whether this run holds the group as a bitsandbytes matrix."""
    return group.quantized and run.quant in SCHEMES


def static_memory(profile: ModelProfile, run: RunConfig) -> StaticMemory:
    """Bytes of everything that stays on the GPU through training except gradients and optimizer state.

    `run` must be resolved. Raises InputError when target modules or modules_to_save match nothing.
    """
    packed = constants = loaded = prepared = buffers = largest_upcast = largest_loaded = 0
    scheme = SCHEMES.get(run.quant or "none")
    half = load_dtype(run)
    for group in profile.tensors:
        if group.tied_with:
            continue
        dtype = group.dtype_float16 if half == "float16" else group.dtype
        size = DTYPE_BYTES[dtype] * group.numel
        if scheme is not None and is_quantized(group, run):
            weight, rest = quantized_tensor_bytes(
                scheme, group.shape[0], group.numel // group.shape[0], run.double_quant
            )
            packed += block_bytes(weight) * group.count
            constants += sum(block_bytes(part) for part in rest) * group.count
            largest_loaded = max(largest_loaded, size)
        elif group.buffer:
            buffers += block_bytes(size) * group.count
        else:
            loaded += block_bytes(size) * group.count
            cast = bool(run.upcast) and dtype in ("bfloat16", "float16")
            after = 2 * size if cast else size
            prepared += block_bytes(after) * group.count
            largest_upcast = max(largest_upcast, after if cast else 0)
    trainable = trainable_tensors(profile, run)
    adapters = (
        0
        if run.method == "full"
        else sum(block_bytes(DTYPE_BYTES[tensor.dtype] * tensor.numel) * tensor.count for tensor in trainable)
    )
    return StaticMemory(
        packed_weights=packed, constants=constants, unquantized_loaded=loaded, unquantized_prepared=prepared,
        buffers=buffers, adapters=adapters, largest_upcast=largest_upcast, largest_loaded=largest_loaded,
        trainable=trainable,
    )  # fmt: skip


def embedding_names(profile: ModelProfile) -> frozenset[str]:
    """The weights of every `nn.Embedding`, a tied one by the name that holds the storage."""
    return frozenset(group.tied_with or group.name for group in profile.tensors if _embeds(group))


def _embeds(group: TensorGroup) -> bool:
    return group.role == "embedding" and group.name.endswith(".weight")


def trainable_tensors(profile: ModelProfile, run: RunConfig) -> tuple[Trainable, ...]:
    """Every trainable tensor: the whole model, or adapters in PEFT's order and then saved modules."""
    whole = "float32" if run.upcast else load_dtype(run)
    if run.method == "full":
        embeddings = embedding_names(profile)
        return tuple(
            Trainable(shape=g.shape, dtype=whole, count=g.count, embedding=g.name in embeddings)
            for g in profile.tensors
            if not g.buffer and not g.tied_with
        )
    found = []
    for tensor in targeted(profile, run):
        found.append(Trainable(shape=tensor.shape(run.rank), dtype=tensor.dtype, count=tensor.count))
        if run.dora and tensor.name in ("lora_B", "lora_embedding_A"):
            # PEFT's magnitude vector: one float32 per output feature (lora/dora.py).
            width = tensor.shape(run.rank)[0 if tensor.name == "lora_B" else 1]
            found.append(Trainable(shape=(width,), dtype="float32", count=tensor.count))
    for group in _saved_modules(profile, run):
        # The copy of a tied head is a linear layer's weight, although the original is the embedding's.
        found.append(Trainable(shape=group.shape, dtype=whole, count=group.count, embedding=_embeds(group)))
    return tuple(found)


def targeted(profile: ModelProfile, run: RunConfig) -> tuple[AdapterTensor, ...]:
    """The adapter tensors that `run.target_modules` adds, those of a numbered layer on every layer.

    Names are matched as PEFT does: see `targets`. Raises InputError listing what exists where none matches,
    MissingError for a module that the profile holds no adapters for.
    """
    if run.method == "full":
        return ()
    wanted = run.target_modules or "all-linear"
    if wanted in profile.adapters:
        return profile.adapters[wanted]
    names = targets_of(profile, wanted).on_every_layer
    for name in names:
        check_adaptable(profile, name)
    chosen = {module for module in adaptable(profile) if any(matches(module, name) for name in names)}
    unique = {
        (tensor.module, tensor.name, tensor.layer_kind, tensor.dims): tensor
        for tensors in profile.adapters.values()
        for tensor in tensors
        if tensor.target in chosen
    }
    return tuple(unique.values())


def _saved_modules(profile: ModelProfile, run: RunConfig) -> tuple[TensorGroup, ...]:
    """Whole modules that are trained in a copy beside the frozen original."""
    found = []
    for name in (run.modules_to_save or "").split(","):
        if not name.strip():
            continue
        matches = [
            group for group in profile.tensors
            if not group.buffer and f".{group.name}".rpartition(".")[0].endswith("." + name.strip())
        ]  # fmt: skip
        if not matches:
            modules = sorted({g.name.rpartition(".")[0] for g in profile.tensors if g.layer_kind is None})
            raise InputError(
                f"--modules-to-save: {quoted(name.strip())} matches nothing; outside the layers: {listed(modules, 40)}"
            )
        found += [replace(group, tied_with=None) for group in matches]
    return tuple(found)
