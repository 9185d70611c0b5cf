"""Weights and adapters on the GPU, exact to the allocator, after loading, preparing and adding adapters."""

from __future__ import annotations

from qlora_planner.memory.allocator.caching import block_bytes
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.memory.weights.trainable import Trainable
from qlora_planner.record import record


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
    cast_back: int = 0  # how much less the prepared weights take once the trainer has cast some back

    @property
    def after_load(self) -> int:
        return self.packed_weights + self.constants + self.unquantized_loaded + self.buffers

    @property
    def after_prepare(self) -> int:
        return self.packed_weights + self.constants + self.unquantized_prepared + self.buffers

    @property
    def unquantized_kept(self) -> int:
        return self.unquantized_prepared - self.cast_back

    @property
    def after_adapters(self) -> int:
        return self.after_prepare + self.adapters


def static_memory(placement: Placement) -> StaticMemory:
    """Bytes of everything that stays on the GPU through training except gradients and optimizer state.

    Raises InputError when target modules or modules_to_save match nothing.
    """
    packed = constants = loaded = prepared = buffers = largest_upcast = largest_loaded = cast_back = 0
    for weight in placement.weights:
        count = weight.group.count
        if weight.group.tied_with:
            continue
        size = block_bytes(weight.weight_bytes) * count
        if weight.scheme is not None:
            packed += size
            constants += sum(block_bytes(part) for part in weight.constant_bytes) * count
            largest_loaded = max(largest_loaded, weight.loaded_bytes)
        elif weight.group.buffer:
            buffers += size
        else:
            loaded += size
            prepared += block_bytes(weight.prepared_bytes) * count
            cast_back += (block_bytes(weight.prepared_bytes) - block_bytes(weight.kept_bytes)) * count
            if weight.dtype != weight.loaded_dtype:
                largest_upcast = max(largest_upcast, weight.prepared_bytes)
    adapters = sum(block_bytes(added.tensor.size_bytes) * added.tensor.count for added in placement.added)
    return StaticMemory(
        packed_weights=packed, constants=constants, unquantized_loaded=loaded, unquantized_prepared=prepared,
        buffers=buffers, adapters=adapters, largest_upcast=largest_upcast, largest_loaded=largest_loaded,
        trainable=placement.trained, cast_back=cast_back,
    )  # fmt: skip
