"""Gradients and optimizer state of the trainable tensors, as the allocator counts them."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_planner.catalog import DTYPE_BYTES, OptimizerRow, TrainerRow
from qlora_planner.catalog.optimizers import MIN_8BIT_ELEMENTS
from qlora_planner.memory.allocator import block_bytes
from qlora_planner.run import RunConfig

Trainable = tuple[tuple[tuple[int, ...], str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
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


def training_state(trainable: Trainable, run: RunConfig, trainer: TrainerRow, optimizer: OptimizerRow) -> TrainingState:
    """Sum over every trainable tensor, each rounded as its own allocation."""
    weights = gradients = states = paged = temporaries = count = 0
    any_8bit = False
    for shape, created, copies in trainable:
        dtype = training_dtype(created, run, trainer, shape)
        numel = 1
        for size in shape:
            numel *= size
        count += numel * copies
        any_8bit = any_8bit or numel >= MIN_8BIT_ELEMENTS
        size_bytes = block_bytes(numel * DTYPE_BYTES[dtype])
        weights += size_bytes * copies
        gradients += size_bytes * copies
        temporaries += optimizer.step_temporaries * size_bytes * copies
        for state in optimizer.states(shape, dtype):
            if state.paged:
                paged += state.size_bytes * copies
            else:
                states += block_bytes(state.size_bytes) * copies
    states += sum(block_bytes(size) for size in optimizer.shared_bytes(any_8bit))
    return TrainingState(
        weights=weights, gradients=gradients, optimizer=states, paged=paged, step_temporaries=temporaries, count=count
    )
