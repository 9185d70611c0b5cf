"""Loading, preparing and adding adapters, played through the allocator in the libraries' own order.

Sources: transformers 5.17 core_model_loading.py (parameters in dotted natural order, one at a time when quantising
on the fly), modeling_utils.py caching_allocator_warmup and tie_weights; bitsandbytes 0.50.2 functional.py
quantize_4bit and backends/cuda/ops.py; peft 0.21 utils/other.py prepare_model_for_kbit_training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from qlora_planner.catalog.tensor_parallel import has_plan, planned
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.memory.allocator.caching import Block, CachingAllocator
from qlora_planner.memory.weights.placement import AddedTensor, PlacedTensor, Placement
from qlora_planner.memory.weights.trainable import Trainable
from qlora_planner.record import record

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
    tensor: PlacedTensor
    blocks: list[Block | None]


@lru_cache(maxsize=8)
def _naturally(names: tuple[str, ...]) -> tuple[int, ...]:
    """The positions of names in their natural order; two blocks of a tower may share a name here, of other shapes."""
    return tuple(sorted(range(len(names)), key=lambda at: natural_key(names[at])))


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


def expand(placement: Placement) -> list[tuple[str, PlacedTensor]]:
    """Every tensor by its full name, in the order of `named_parameters` then buffers."""
    weights = placement.weights
    groups = tuple((each.group.name, each.group.count, each.group.layer_kind, each.group.buffer) for each in weights)
    profile = placement.profile
    kinds = tuple(kind.name for kind in profile.layer_kinds)
    return [(name, weights[at]) for name, at in _expanded(groups, tuple(profile.layer_order), kinds)]


@lru_cache(maxsize=8)  # every run of a model asks
def _expanded(
    groups: tuple[tuple[str, int, str | None, bool], ...],
    layer_order: tuple[tuple[int, int], ...],
    kinds: tuple[str, ...],
) -> tuple[tuple[str, int], ...]:
    """The names, each with the position of its group."""
    positions: dict[str, list[int]] = {}
    index = 0
    for kind, length in layer_order:
        for _ in range(length):
            positions.setdefault(kinds[kind], []).append(index)
            index += 1
    named: list[tuple[bool, int, int, str]] = []
    seen_layers = False
    for order, (group_name, count, layer_kind, buffer) in enumerate(groups):
        seen_layers = seen_layers or layer_kind is not None
        if "*" not in group_name:
            # Norm and head follow the layers.
            named.append((buffer, index if seen_layers else -1, order, group_name))
            continue
        layers = positions.get(layer_kind or "", [])
        inner = count // len(layers) if layers else count
        head, _, tail = group_name.partition("*")
        for layer in layers or range(count):
            for copy in range(inner if layers else 1):
                named.append((buffer, layer, order, f"{head}{layer}{tail.replace('*', str(copy), 1)}"))
    return tuple((name, order) for _, _, order, name in sorted(named, key=lambda item: item[:3]))


def load(memory: CachingAllocator, placement: Placement, world: int = 1) -> tuple[list[Loaded], PhasePeak]:
    """Play `from_pretrained` of the model's checkpoint.

    `world` is the number of ranks, each of which loads the whole model. A tied head is taken to be stored too where no
    file says: save_pretrained leaves it out, and some published files hold it all the same (Qwen3-0.6B).
    """
    tied_stored = trainer_named(placement.run.trainer).loads_tied(placement.profile.tied_stored)
    tensors = [item for item in expand(placement) if tied_stored or not item[1].group.tied_with]
    memory.free(memory.malloc(_warm_up_bytes(placement, memory, world)))
    parameters = [item for item in tensors if not item[1].group.buffer]
    in_order = [parameters[at] for at in _naturally(tuple(name for name, _ in parameters))]
    placed: dict[str, Loaded] = {}
    first_code = True
    for name, tensor in [*in_order, *(item for item in tensors if item[1].group.buffer)]:
        blocks = _quantize(memory, tensor) if tensor.scheme else [memory.malloc(tensor.weight_bytes)]
        placed[name] = Loaded(name, tensor, blocks)
        if first_code and len(tensor.constant_bytes) > 2:
            memory.malloc(1024)  # bitsandbytes' 256-entry map of double quantisation, kept once per process
            first_code = False
    for tied in [entry for entry in placed.values() if entry.tensor.group.tied_with]:
        # tie_weights compares both copies with torch.equal, which makes a boolean tensor, then drops one.
        memory.free(memory.malloc(tied.tensor.numel))
        memory.free(tied.blocks[0])
        del placed[tied.name]
    order = [placed[name] for name, _ in tensors if name in placed]
    return order, PhasePeak(live=memory.allocated, allocated=memory.peak_allocated, reserved=memory.peak_reserved)


def _warm_up_bytes(placement: Placement, memory: CachingAllocator, world: int) -> int:
    """transformers reserves the expected size in one allocation first; 4-bit counts half a byte, 8-bit one.

    In a process group it counts what the class's tensor-parallel plan splits by the ranks, though nothing is split.
    """
    total = 0
    split = world > 1 and has_plan(placement.profile.model_type)
    tied = {tensor.group.tied_with for tensor in placement.weights}
    for tensor in placement.weights:
        group = tensor.group
        if group.tied_with or (group.buffer and group.role == "rotary"):
            continue
        size = tensor.numel * tensor.scheme.weight_bits // 8 if tensor.scheme else tensor.loaded_bytes
        if split and planned(group.role, quantized=group.quantized, tied=group.name in tied):
            size //= world
        total += group.count * size
    unused = memory.reserved - memory.allocated
    if total - unused > unused:
        total -= unused
    elif total - unused > 3 * GIB // 2:
        total = unused + 1
    else:
        total = 0
    return total // 2 * 2


def _quantize(memory: CachingAllocator, tensor: PlacedTensor) -> list[Block | None]:
    assert tensor.scheme is not None
    temporary = memory.malloc(tensor.loaded_bytes)
    if tensor.scheme.row_statistics:
        half = memory.malloc(2 * tensor.numel)
        kept = [memory.malloc(tensor.constant_bytes[0]), memory.malloc(tensor.weight_bytes)]
        memory.free(half)
        memory.free(temporary)
        return kept
    transposed = memory.malloc(tensor.loaded_bytes) if tensor.group.module_class == "Conv1D" else None
    absmax_bytes, code_bytes, *nested = tensor.constant_bytes
    float_bytes = 4 * absmax_bytes if nested else absmax_bytes
    absmax = memory.malloc(float_bytes)
    kept = [memory.malloc(tensor.weight_bytes), memory.malloc(code_bytes)]
    if nested:
        outer_bytes, table_bytes, offset_bytes = nested
        kept.append(memory.malloc(offset_bytes))
        centred = memory.malloc(float_bytes)
        kept += [memory.malloc(size) for size in (outer_bytes, absmax_bytes, table_bytes)]
        memory.free(centred)
        memory.free(absmax)
    else:
        kept.append(absmax)
    memory.free(transposed)
    memory.free(temporary)
    return kept


def prepare(memory: CachingAllocator, tensors: Iterable[Loaded]) -> PhasePeak:
    """Play `prepare_model_for_kbit_training`: each 16-bit parameter cast beside itself, then the cache emptied."""
    memory.reset_peaks()
    for entry in tensors:
        if entry.tensor.dtype != entry.tensor.loaded_dtype:
            cast = memory.malloc(entry.tensor.prepared_bytes)
            memory.free(entry.blocks[0])
            entry.blocks[0] = cast
    peak = PhasePeak(live=memory.allocated, allocated=memory.peak_allocated, reserved=memory.peak_reserved)
    memory.empty_cache()
    return peak


def cast_back(memory: CachingAllocator, tensors: Iterable[Loaded], adding: PhasePeak) -> PhasePeak:
    """Play what the trainer casts back to 16 bits, each weight beside itself, after adapters were added (`adding`)."""
    for entry in tensors:
        if entry.tensor.kept_dtype != entry.tensor.dtype:
            cast = memory.malloc(entry.tensor.kept_bytes)
            memory.free(entry.blocks[0])
            entry.blocks[0] = cast
    return PhasePeak(live=adding.live, allocated=memory.peak_allocated, reserved=memory.peak_reserved)


def in_model_order(placement: Placement) -> list[AddedTensor]:
    """What PEFT adds, one by one as `named_parameters` gives it: layer by layer, outside the layers, saved copies."""
    profile = placement.profile
    ordered: list[AddedTensor] = []
    for index, length in profile.layer_order:
        kind = profile.layer_kinds[index]
        for _ in range(length):
            for added in placement.added:
                if added.adapter is not None and added.adapter.layer_kind == kind.name:
                    ordered += [added] * (added.tensor.count // kind.count)
    outside = [added for added in placement.added if added.adapter is None or added.adapter.layer_kind is None]
    return ordered + [added for added in outside for _ in range(added.tensor.count)]


def add_adapters(
    memory: CachingAllocator, placement: Placement, workspace_bytes: int
) -> tuple[list[tuple[Trainable, Block | None]], PhasePeak]:
    """Play `get_peft_model`: adapters are born in their base layer's compute dtype, then all cast to float32.

    DoRA multiplies the first adapters on the GPU, which makes cuBLAS take its workspace (`workspace_bytes`).
    A full fine-tune adds nothing. The tensors come back in the model's order, each with its block.
    """
    memory.reset_peaks()
    order = in_model_order(placement)
    blocks: list[Block | None] = [None] * len(order)
    births = {id(added): added.birth_bytes for added in placement.added}
    for index in _by_pass(order):
        added = order[index]
        if added.magnitude and added.base is not None:
            blocks[index] = _dora_magnitude(memory, added, added.base, workspace_bytes)
            workspace_bytes = 0
        else:
            blocks[index] = memory.malloc(births[id(added)])
    casts = {id(added): added.tensor.size_bytes for added in placement.added if added.birth_dtype != added.tensor.dtype}
    for index, added in enumerate(order):
        if id(added) in casts:
            cast = memory.malloc(casts[id(added)])
            memory.free(blocks[index])
            blocks[index] = cast
    peak = PhasePeak(live=memory.allocated, allocated=memory.peak_allocated, reserved=memory.peak_reserved)
    return [(added.tensor, block) for added, block in zip(order, blocks, strict=True)], peak


def _by_pass(order: list[AddedTensor]) -> list[int]:
    """PEFT wraps modules first, bare parameters in a second pass, and copies whole modules last."""
    passes = [2 if added.adapter is None else int(added.adapter.on_parameter) for added in order]
    return sorted(range(len(order)), key=passes.__getitem__)


def _dora_magnitude(
    memory: CachingAllocator, added: AddedTensor, base: PlacedTensor, workspace_bytes: int
) -> Block | None:
    """peft lora/dora.py update_layer: a copy of the 4-bit layer, its weight, and three products of its size."""
    size = 2 * base.numel
    temporary = [memory.malloc(base.numel // 2 if base.scheme else 0), memory.malloc(size), memory.malloc(size)]
    if workspace_bytes:
        memory.malloc(workspace_bytes)
    temporary += [memory.malloc(size), memory.malloc(size)]
    magnitude = memory.malloc(added.birth_bytes)
    for block in temporary:
        memory.free(block)
    return magnitude
