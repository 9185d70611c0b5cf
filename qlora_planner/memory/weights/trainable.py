"""Gradients and optimizer state of the trainable tensors, as the allocator counts them."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from qlora_planner.catalog import DTYPE_BYTES, OptimizerRow, TrainerRow
from qlora_planner.memory.allocator.caching import block_bytes
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig


@record
class Trainable:
    """`count` trainable tensors of one shape, with their dtype right after `get_peft_model`.

    `embedding`: the weight of an `nn.Embedding`.
    """

    shape: tuple[int, ...]
    dtype: str
    count: int = 1
    embedding: bool = False

    @property
    def numel(self) -> int:
        """Elements of one tensor."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of one tensor in its dtype."""
        return self.numel * DTYPE_BYTES[self.dtype]

    def forced_32bit(self, trainer: TrainerRow) -> bool:
        """Whether the trainer has an 8-bit optimizer keep its states in 32 bits."""
        return self.embedding and trainer.embeddings_32bit


@record
class TrainingState:
    """Bytes while training. `paged` lies in managed memory, outside torch's counters."""

    weights: int
    gradients: int
    optimizer: int
    paged: int
    step_temporaries: int
    count: int  # trainable parameters


def training_dtype(dtype: str, run: RunConfig, trainer: TrainerRow, shape: tuple[int, ...]) -> str:
    """The dtype an adapter tensor trains in: trl casts those of a quantised base, except DoRA's magnitudes."""
    magnitude = run.dora and len(shape) == 1
    cast = trainer.adapters_bfloat16 and run.quant != "none" and run.method != "full" and not magnitude
    return "bfloat16" if cast else dtype


def training_state(
    trainable: Iterable[Trainable], run: RunConfig, trainer: TrainerRow, optimizer: OptimizerRow
) -> TrainingState:
    """Sum over every trainable tensor, each rounded as its own allocation."""
    weights = gradients = states = paged = temporaries = count = 0
    any_8bit = False
    for tensor in trainable:
        copies, forced = tensor.count, tensor.forced_32bit(trainer)
        dtype = training_dtype(tensor.dtype, run, trainer, tensor.shape)
        count += tensor.numel * copies
        any_8bit = any_8bit or optimizer.in_8_bits(tensor.shape, forced)
        size_bytes = block_bytes(tensor.numel * DTYPE_BYTES[dtype])
        weights += size_bytes * copies
        gradients += size_bytes * copies
        temporaries += optimizer.step_temporaries * size_bytes * copies
        for state in optimizer.states(tensor.shape, dtype, forced):
            if state.paged:
                paged += state.size_bytes * copies
            else:
                states += block_bytes(state.size_bytes) * copies
    states += sum(block_bytes(size) for size in optimizer.shared_bytes(any_8bit))
    return TrainingState(
        weights=weights, gradients=gradients, optimizer=states, paged=paged, step_temporaries=temporaries, count=count
    )
