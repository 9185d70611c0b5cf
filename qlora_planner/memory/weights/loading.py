"""Loading, preparing and adding adapters, played through the allocator in the libraries' own order.

Sources: transformers 5.17 core_model_loading.py (parameters in dotted natural order, one at a time when quantising
on the fly), modeling_utils.py caching_allocator_warmup and tie_weights; bitsandbytes 0.50.2 functional.py
quantize_4bit and backends/cuda/ops.py; peft 0.21 utils/other.py prepare_model_for_kbit_training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from qlora_planner.catalog import DTYPE_BYTES, SCHEMES, quantized_tensor_bytes
from qlora_planner.memory.allocator.caching import Block, CachingAllocator
from qlora_planner.memory.weights.static import is_quantized, load_dtype, targeted, trainable_tensors
from qlora_planner.memory.weights.trainable import Trainable
from qlora_planner.record import record
from qlora_planner.spec.model import AdapterTensor, ModelProfile, TensorGroup
from qlora_planner.spec.run import RunConfig

GIB = 1 << 30


@record
class PhasePeak:
    """What torch's counters show over a phase, and what stays live at its end. Bytes."""

    live: int
    allocated: int
    reserved: int


@dataclass(slots=True)
class Loaded:
    """One tensor on the GPU, in the model's own order."""

    name: str
    group: TensorGroup
    blocks: list[Block | None]


def natural_key(name: str) -> list[tuple[int, int | str, int]]:
    """transformers' order of checkpoint keys: dotted parts, numbers as numbers."""
    key: list[tuple[int, int | str, int]] = []
    for part in name.split("."):
        if part.isdigit():
            key.append((0, int(part), 0))
        else:
            text = part.rstrip("0123456789")
            digits = part[len(text) :]
            key.append((1, text, int(digits) if digits else -1))
    return key


def expand(profile: ModelProfile) -> list[tuple[str, TensorGroup]]:
    """Every tensor by its full name, in the order of `named_parameters` then buffers."""
    positions: dict[str, list[int]] = {}
    index = 0
    for kind, length in profile.layer_order:
        for _ in range(length):
            positions.setdefault(profile.layer_kinds[kind].name, []).append(index)
            index += 1
    found: list[tuple[int, int, str, TensorGroup]] = []
    seen_layers = False
    for order, group in enumerate(profile.tensors):
        seen_layers = seen_layers or group.layer_kind is not None
        if "*" not in group.name:
            found.append((index if seen_layers else -1, order, group.name, group))  # norm and head follow the layers
            continue
        layers = positions.get(group.layer_kind or "", [])
        inner = group.count // len(layers) if layers else group.count
        head, _, tail = group.name.partition("*")
        for layer in layers or range(group.count):
            for copy in range(inner if layers else 1):
                found.append((layer, order, f"{head}{layer}{tail.replace('*', str(copy), 1)}", group))
    return [(name, group) for _, _, name, group in sorted(found, key=lambda item: (item[3].buffer, item[0], item[1]))]


def load(memory: CachingAllocator, profile: ModelProfile, run: RunConfig) -> tuple[list[Loaded], PhasePeak]:
    """Play `from_pretrained` of a checkpoint that stores every key (a tied head too, as torch's own format does)."""
    tensors = expand(profile)
    half = load_dtype(run)
    memory.free(memory.malloc(_warm_up_bytes(tensors, run, half, memory)))
    placed: dict[str, Loaded] = {}
    first_code = True
    for name, group in sorted(tensors, key=lambda item: natural_key(item[0])):
        if group.buffer:
            continue
        size = _loaded_bytes(group, half)
        if is_quantized(group, run):
            blocks = _quantize(memory, group, run, size)
            if first_code and run.double_quant and run.quant != "int8":
                memory.malloc(1024)  # bitsandbytes' 256-entry map, kept once per process
                first_code = False
        else:
            blocks = [memory.malloc(size)]
        placed[name] = Loaded(name, group, blocks)
    for name, group in tensors:
        if group.buffer:
            placed[name] = Loaded(name, group, [memory.malloc(_loaded_bytes(group, half))])
    for tied in [entry for entry in placed.values() if entry.group.tied_with]:
        # tie_weights compares both copies with torch.equal, which makes a boolean tensor, then drops one.
        memory.free(memory.malloc(entry_elements(tied)))
        memory.free(tied.blocks[0])
        del placed[tied.name]
    order = [placed[name] for name, _ in tensors if name in placed]
    return order, PhasePeak(live=memory.allocated, allocated=memory.peak_allocated, reserved=memory.peak_reserved)


def entry_elements(entry: Loaded) -> int:
    """Elements of a tensor: the bytes of a boolean tensor of its shape."""
    return entry.group.numel


def _loaded_bytes(group: TensorGroup, half: str) -> int:
    return DTYPE_BYTES[group.dtype_float16 if half == "float16" else group.dtype] * group.numel


def _warm_up_bytes(tensors: list[tuple[str, TensorGroup]], run: RunConfig, half: str, memory: CachingAllocator) -> int:
    """transformers reserves the expected size in one allocation first; 4-bit counts half a byte, 8-bit one."""
    total = 0
    for _, group in tensors:
        if group.tied_with or (group.buffer and group.role == "rotary"):
            continue
        if is_quantized(group, run):
            total += group.numel // (1 if run.quant == "int8" else 2)
        else:
            total += _loaded_bytes(group, half)
    unused = memory.reserved - memory.allocated
    if total - unused > unused:
        total -= unused
    elif total - unused > 3 * GIB // 2:
        total = unused + 1
    else:
        total = 0
    return total // 2 * 2


def _quantize(memory: CachingAllocator, group: TensorGroup, run: RunConfig, size: int) -> list[Block | None]:
    scheme = SCHEMES[run.quant or "nf4"]
    out_features = group.shape[0]
    packed, constants = quantized_tensor_bytes(scheme, out_features, group.numel // out_features, run.double_quant)
    temporary = memory.malloc(size)
    if scheme.row_statistics:
        half = memory.malloc(2 * group.numel)
        kept = [memory.malloc(constants[0]), memory.malloc(packed)]
        memory.free(half)
        memory.free(temporary)
        return kept
    transposed = memory.malloc(size) if group.module_class == "Conv1D" else None
    blocks = -(-group.numel // (scheme.block or 64))
    absmax = memory.malloc(4 * blocks)
    weight = memory.malloc(packed)
    code = memory.malloc(4 * scheme.code_entries)
    kept = [weight, code, absmax]
    if run.double_quant:
        offset = memory.malloc(4)
        centred = memory.malloc(4 * blocks)
        outer = memory.malloc(constants[2])
        small = memory.malloc(blocks)
        table = memory.malloc(constants[3])
        memory.free(centred)
        memory.free(absmax)
        kept = [weight, code, offset, outer, small, table]
    memory.free(transposed)
    memory.free(temporary)
    return kept


def prepare(memory: CachingAllocator, tensors: list[Loaded], run: RunConfig) -> PhasePeak:
    """Play `prepare_model_for_kbit_training`: each 16-bit parameter cast beside itself, then the cache emptied."""
    memory.reset_peaks()
    half = load_dtype(run)
    for entry in tensors:
        group = entry.group
        dtype = group.dtype_float16 if half == "float16" else group.dtype
        if group.buffer or is_quantized(group, run) or dtype not in ("bfloat16", "float16"):
            continue
        cast = memory.malloc(4 * group.numel)
        memory.free(entry.blocks[0])
        entry.blocks[0] = cast
    peak = PhasePeak(live=memory.allocated, allocated=memory.peak_allocated, reserved=memory.peak_reserved)
    memory.empty_cache()
    return peak


def _in_model_order(profile: ModelProfile, run: RunConfig) -> Iterator[AdapterTensor]:
    """Every adapter tensor as `named_parameters` gives them: layer by layer, then outside the layers."""
    tensors = targeted(profile, run)
    for kind, length in profile.layer_order:
        layer_kind = profile.layer_kinds[kind]
        mine = [tensor for tensor in tensors if tensor.layer_kind == layer_kind.name]
        for _ in range(length):
            for tensor in mine:
                yield from [tensor] * (tensor.count // layer_kind.count)
    for tensor in tensors:
        if tensor.layer_kind is None:
            yield from [tensor] * tensor.count


def adapter_shapes(profile: ModelProfile, run: RunConfig) -> list[Trainable]:
    """Every trainable tensor, one by one, in the order in which `add_adapters` returns its block."""
    found: list[Trainable] = []
    weights = {group.name for group in profile.tensors}
    for tensor in _in_model_order(profile, run):
        shape = tensor.shape(run.rank)
        found.append(Trainable(shape=shape, dtype="float32"))
        if run.dora and tensor.name == "lora_B" and tensor.module + ".weight" in weights:
            found.append(Trainable(shape=(shape[0],), dtype="float32"))
    for saved in _saved_copies(profile, run):
        found += [replace(saved, count=1)] * saved.count
    return found


def add_adapters(
    memory: CachingAllocator, profile: ModelProfile, run: RunConfig, workspace_bytes: int
) -> tuple[list[Block | None], PhasePeak]:
    """Play `get_peft_model`: adapters are born in their base layer's compute dtype, then all cast to float32.

    DoRA multiplies the first adapters on the GPU, which makes cuBLAS take its workspace (`workspace_bytes`).
    A full fine-tune adds nothing.
    """
    memory.reset_peaks()
    born: list[tuple[Block | None, int, int]] = []
    if run.method != "full":
        weights = {group.name: group for group in profile.tensors if group.name.endswith(".weight")}
        workspace_taken = False
        places: list[int] = []  # where each of `born` stands in the model
        order = list(_in_model_order(profile, run))
        # PEFT wraps modules first, bare parameters in a second pass.
        for place, tensor in sorted(enumerate(order), key=lambda item: item[1].on_parameter):
            base = weights.get(tensor.module + ".weight")
            size = _bytes(tensor.shape(run.rank), "float32")
            birth = size * _birth_bytes(base, run) // 4
            born.append((memory.malloc(birth), birth, size))
            places.append(place)
            if run.dora and tensor.name == "lora_B" and base is not None:
                born.append(_dora_magnitude(memory, base, run, 0 if workspace_taken else workspace_bytes))
                places.append(place)
                workspace_taken = True
        born = [entry for _, entry in sorted(zip(places, born, strict=True), key=lambda item: item[0])]
        for saved in _saved_copies(profile, run):
            born += [(memory.malloc(size), size, size) for size in [_bytes(saved.shape, saved.dtype)] * saved.count]
    blocks: list[Block | None] = []
    for block, birth, size in born:
        if birth < size:
            cast = memory.malloc(size)
            memory.free(block)
            block = cast
        blocks.append(block)
    return blocks, PhasePeak(live=memory.allocated, allocated=memory.peak_allocated, reserved=memory.peak_reserved)


def _birth_bytes(base: TensorGroup | None, run: RunConfig) -> int:
    """Bytes per element in which PEFT creates an adapter: a 4-bit layer's compute dtype, or the layer's own."""
    if base is not None and is_quantized(base, run):
        return 4 if run.quant == "int8" else DTYPE_BYTES[run.compute_dtype or "bfloat16"]
    return 4 if run.upcast else 2


def _dora_magnitude(
    memory: CachingAllocator, base: TensorGroup, run: RunConfig, workspace_bytes: int
) -> tuple[Block | None, int, int]:
    """peft lora/dora.py update_layer: a copy of the 4-bit layer, its weight, and three products of its size."""
    size = 2 * base.numel
    temporary = [
        memory.malloc(base.numel // 2 if is_quantized(base, run) else 0),
        memory.malloc(size),
        memory.malloc(size),
    ]
    if workspace_bytes:
        memory.malloc(workspace_bytes)
    temporary += [memory.malloc(size), memory.malloc(size)]
    magnitude = memory.malloc(2 * base.shape[0])
    for block in temporary:
        memory.free(block)
    return magnitude, 2 * base.shape[0], 4 * base.shape[0]


def _saved_copies(profile: ModelProfile, run: RunConfig) -> tuple[Trainable, ...]:
    if not run.modules_to_save:
        return ()
    count = sum(2 if run.dora and t.name in ("lora_B", "lora_embedding_A") else 1 for t in targeted(profile, run))
    return trainable_tensors(profile, run)[count:]


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    total = DTYPE_BYTES[dtype]
    for size in shape:
        total *= size
    return total
