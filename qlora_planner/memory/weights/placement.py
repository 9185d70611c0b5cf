"""The one bill of tensors: what a run puts on its card, how each tensor is stored, and which of them are trained.

Static bytes, loading, training state, the audit and speeds read it; nothing else decides how a tensor is stored.
Everything in it lives on the card; what an optimizer keeps of a trained tensor may lie in managed memory instead
(`OptimizerRow.states` says which).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from qlora_planner.catalog import DTYPE_BYTES, SCHEMES, QuantScheme, quantized_tensor_bytes
from qlora_planner.catalog.classifiers import SCORE, labels_of
from qlora_planner.catalog.trainers import CAST_BACK, trainer_named
from qlora_planner.errors import InputError
from qlora_planner.memory.weights.classifier import profile_for
from qlora_planner.memory.weights.targets import targeted
from qlora_planner.memory.weights.trainable import Trainable
from qlora_planner.record import record
from qlora_planner.spec.model import AdapterTensor, LayerKind, ModelProfile, TensorGroup
from qlora_planner.spec.run import RunConfig, options_without
from qlora_planner.text import listed, quoted

_HALF = ("bfloat16", "float16")


@record
class PlacedTensor:
    """The tensors of one group as the card holds them; every figure is one tensor's, and `group.count` are alike.

    `shape` is what this card holds of `group.shape`. `weight_bytes` and `constant_bytes` are its allocations once
    loaded: the packed weight with its constants, or the tensor alone, in `loaded_dtype`. `dtype` is what it has after
    `prepare_model_for_kbit_training`, and `kept_dtype` what it has through training. `trained` is set where a full
    fine-tune trains the tensor itself.
    """

    group: TensorGroup
    shape: tuple[int, ...]
    scheme: QuantScheme | None  # how bitsandbytes packs it; None where it stays as it is
    loaded_dtype: str
    dtype: str
    kept_dtype: str
    numel: int
    weight_bytes: int
    constant_bytes: tuple[int, ...]
    trained: Trainable | None

    @property
    def loaded_bytes(self) -> int:
        """The tensor as it comes from the checkpoint, before anything is packed."""
        return DTYPE_BYTES[self.loaded_dtype] * self.numel

    @property
    def prepared_bytes(self) -> int:
        """The weight once it is prepared: packed, or after its cast."""
        return self.weight_bytes if self.scheme else DTYPE_BYTES[self.dtype] * self.numel

    @property
    def kept_bytes(self) -> int:
        """The weight through training: as it was prepared, or as the trainer cast it back."""
        return self.weight_bytes if self.scheme else DTYPE_BYTES[self.kept_dtype] * self.numel


@record
class AddedTensor:
    """What PEFT puts beside the model's own tensors: half of an adapter, DoRA's magnitudes, or a saved module's copy.

    It is made in `birth_dtype` and then cast to its own. `adapter` is None for a saved module's copy; `base` is the
    tensor that it stands beside.
    """

    tensor: Trainable
    birth_dtype: str
    base: PlacedTensor | None
    adapter: AdapterTensor | None = None
    magnitude: bool = False

    @property
    def birth_bytes(self) -> int:
        """Bytes of one before the cast."""
        return DTYPE_BYTES[self.birth_dtype] * self.tensor.numel


# Options that decide nothing of a bill.
UNBILLED = (
    "batch_size", "seq_len", "grad_accum", "optimizer", "gradient_checkpointing", "use_reentrant", "liger", "padding",
    "checkpoint_every", "checkpoint_offload", "activation_offloading", "alloc_conf", "packing", "eval_batch_size",
    "attention", "lora_dropout", "alpha", "trainer",
)  # fmt: skip
_billed_options = options_without(*UNBILLED)


def bill_key(run: RunConfig) -> tuple[Any, ...]:
    """One value for all runs of a model that have the same bill."""
    return _billed_options(run), *billed_by_trainer(run)


def billed_by_trainer(run: RunConfig) -> tuple[Any, ...]:
    """What the trainer decides of a bill: the labels that it scores, and whether it casts weights back."""
    return labels_of(run), _casts_back(run)


def _casts_back(run: RunConfig) -> bool:
    return run.trainer is not None and trainer_named(run.trainer).casts_back(run)


class Placement:
    """The bill of one run, each part counted when it is first read. `run` must be resolved.

    Its `profile` is that of the class which the run trains: see `profile_for`, whose errors making it raises.

    A rank of several that shard their tensors would cut the shapes made here (`PlacedTensor.shape`, `Trainable.shape`)
    along their first dimension; constants are had from the whole group, as no sharding reaches them.
    """

    def __init__(self, profile: ModelProfile, run: RunConfig) -> None:
        self.profile = profile_for(profile, run)
        self.run = run
        self._cast_back = _casts_back(run)

    @cached_property
    def weights(self) -> tuple[PlacedTensor, ...]:
        """The model's own tensors in the profile's order, buffers and tied ones among them."""
        groups = self.profile.tensors
        embeddings = {group.tied_with or group.name for group in groups if _embeds(group)}
        return tuple(self._placed(group, group.name in embeddings) for group in groups)

    @cached_property
    def added(self) -> tuple[AddedTensor, ...]:
        """What PEFT adds: adapters in its order, then copies of saved modules; nothing in a full fine-tune.

        Raises InputError when target modules or modules_to_save match nothing.
        """
        if self.run.method == "full":
            return ()
        # Kinds of layers that take turns, as Gemma's, have tensors of the same names.
        bases = {(weight.group.name, weight.group.layer_kind): weight for weight in self.weights}
        adapters = [
            added
            for adapter in targeted(self.profile, self.run)
            for added in self._adapted(adapter, bases.get((adapter.module + ".weight", adapter.layer_kind)))
        ]
        return (*adapters, *self._saved())

    @cached_property
    def trained(self) -> tuple[Trainable, ...]:
        """Every trainable tensor: the whole model, or what PEFT adds. Raises as `added`."""
        if self.run.method == "full":
            return tuple(weight.trained for weight in self.weights if weight.trained)
        return tuple(added.tensor for added in self.added)

    @cached_property
    def adapters(self) -> tuple[AdapterTensor, ...]:
        """The adapter tensors among `added`. Raises as it does."""
        return tuple(added.adapter for added in self.added if added.adapter and not added.magnitude)

    def layer_weights(self, kind: LayerKind) -> tuple[PlacedTensor, ...]:
        """The parameters of one kind of layer."""
        return tuple(w for w in self.weights if w.group.layer_kind == kind.name and not w.group.buffer)

    @property
    def packed_matrices(self) -> int:
        """How many tensors bitsandbytes stores."""
        return sum(weight.group.count for weight in self.weights if weight.scheme and not weight.group.tied_with)

    def _placed(self, group: TensorGroup, embedding: bool) -> PlacedTensor:
        run, shape, numel = self.run, group.shape, group.numel
        scheme = SCHEMES.get(run.quant or "none") if group.quantized else None
        if run.expert_quant == "nf4" and stores_experts(group) and not group.quantized:
            scheme = SCHEMES["nf4"]
        loaded = dtype = group.dtype_float16 if load_dtype(run) == "float16" else group.dtype
        constants: tuple[int, ...] = ()
        if scheme is not None:
            # transformers turns a Conv1D's weight before it is packed: int8 has a scale for each of its outputs.
            rows = shape[::-1] if group.module_class == "Conv1D" else shape
            size, constants = packed_bytes(scheme, rows, run.double_quant)
        else:
            size = DTYPE_BYTES[loaded] * numel
            if run.upcast and loaded in _HALF and not group.buffer:
                dtype = "float32"
        kept = "bfloat16" if dtype == "float32" and self._cast_back and cast_back(group.name) else dtype
        trained = None
        if run.method == "full" and not group.buffer and not group.tied_with:
            trained = Trainable(shape=shape, dtype=_whole_dtype(run), count=group.count, embedding=embedding)
        return PlacedTensor(
            group=group, shape=shape, scheme=scheme, loaded_dtype=loaded, dtype=dtype, kept_dtype=kept, numel=numel,
            weight_bytes=size, constant_bytes=constants, trained=trained,
        )  # fmt: skip

    def _adapted(self, adapter: AdapterTensor, base: PlacedTensor | None) -> Iterator[AddedTensor]:
        """An adapter's tensor, born in its base's compute dtype; and DoRA's magnitudes, one per output feature."""
        run, shape = self.run, adapter.shape(self.run.rank)
        birth = "float32" if run.upcast else "bfloat16"
        if base is not None and base.scheme is not None:
            birth = "float32" if base.scheme.row_statistics else run.compute_dtype or "bfloat16"
        tensor = Trainable(shape=shape, dtype=adapter.dtype, count=adapter.count)
        yield AddedTensor(tensor=tensor, birth_dtype=birth, base=base, adapter=adapter)
        if run.dora and adapter.name in ("lora_B", "lora_embedding_B"):
            tensor = Trainable(shape=shape[:1], dtype="float32", count=adapter.count)
            yield AddedTensor(tensor=tensor, birth_dtype="bfloat16", base=base, adapter=adapter, magnitude=True)

    def _saved(self) -> Iterator[AddedTensor]:
        """Whole modules that are trained in a copy beside the frozen original."""
        dtype = _whole_dtype(self.run)
        names = [name for name in (self.run.modules_to_save or "").split(",") if name.strip()]
        if labels_of(self.run) is not None:  # PEFT's task type SEQ_CLS adds it to what is saved
            names = [name for name in names if name.strip() != SCORE] + [SCORE]
        for name in names:
            copied = [
                weight for weight in self.weights
                if not weight.group.buffer and f".{weight.group.name}".rpartition(".")[0].endswith("." + name.strip())
            ]  # fmt: skip
            if not copied:
                modules = sorted({g.name.rpartition(".")[0] for g in self.profile.tensors if g.layer_kind is None})
                raise InputError(
                    f"--modules-to-save: {quoted(name.strip())} matches nothing; outside the layers:"
                    f" {listed(modules, 40)}"
                )
            for base in copied:
                # The copy of a tied head is a linear layer's weight, although the original is the embedding's.
                tensor = Trainable(shape=base.shape, dtype=dtype, count=base.group.count, embedding=_embeds(base.group))
                yield AddedTensor(tensor=tensor, birth_dtype=dtype, base=base)


def cast_back(name: str) -> bool:
    """Whether a trainer that casts weights back casts the one with this full name."""
    return any(part in name.rpartition(".")[0] for part in CAST_BACK)


def module_of(weight: PlacedTensor) -> str:
    """The module that a tensor is a parameter of, by its group's name."""
    return weight.group.name.rpartition(".")[0]


def stores_experts(group: TensorGroup) -> bool:
    """Whether a tensor holds the weights of several experts, one matrix each."""
    return group.role == "experts" and len(group.shape) == 3 and not group.buffer


def fuses_experts(profile: ModelProfile) -> bool:
    """Whether the model has such tensors, which transformers' 4-bit loading leaves in 16 bits."""
    return any(stores_experts(group) and not group.quantized for group in profile.tensors)


def packed_bytes(scheme: QuantScheme, shape: tuple[int, ...], double_quant: bool) -> tuple[int, tuple[int, ...]]:
    """Bytes of a packed weight and of its constants; a stack of matrices has a row of constants per row of each."""
    rows = shape[0]
    for size in shape[1:-1]:
        rows *= size
    return quantized_tensor_bytes(scheme, rows, shape[-1], double_quant)


def load_dtype(run: RunConfig) -> str:
    """The dtype that unquantised weights are loaded in."""
    return run.load_dtype or "bfloat16"


def _whole_dtype(run: RunConfig) -> str:
    return "float32" if run.upcast else load_dtype(run)


def _embeds(group: TensorGroup) -> bool:
    return group.role == "embedding" and group.name.endswith(".weight")
