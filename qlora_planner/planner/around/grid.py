"""Sequence by batch around a run, as the explorer shows it: the longest length of each batch, and cells between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from qlora_planner.errors import InputError
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.memory.unmodelled.qualified import CANNOT_SAY
from qlora_planner.planner.around.image_frontier import BATCHES, frontier_around
from qlora_planner.planner.around.partial import judged_by, unbounded
from qlora_planner.planner.candidate_memory import Scale
from qlora_planner.planner.knobs import at_batch, generates, of_length
from qlora_planner.planner.neighbours import FRONTIER_BATCHES, candidate_memory_at
from qlora_planner.planner.planner import Planner
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig

# A rank is at most so far from what playing takes: cells of the grid that are nearer to the limit are played.
NEAR_BY = 1.1
# Lengths of the frontier's grid.
GRID_LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
Cells = Mapping[tuple[int, int], tuple[str, int]]


@record
class Frontier:
    """Sequence by batch around a run: the longest length of each batch, and a verdict and a floor in bytes per cell.

    `cells` is keyed by (batch, length). Those near the limit are played where their trace ships, others are ranked;
    with images only those are there whose trace is at hand. Where nobody can say what fits, `longest` is None for all.
    """

    longest: Mapping[int, int | None]
    lengths: tuple[int, ...]
    cells: Cells
    usable_bytes: int


def grid_around(planner: Planner, here: MemoryEstimate, scale: Scale) -> Frontier:
    """The grid around the run of `here`, its own estimate."""
    run = here.run
    least = run.prompt_len or 0 if generates(run) else 0
    most = planner.model_limit or GRID_LENGTHS[-1]
    lengths = tuple(length for length in GRID_LENGTHS if least < length <= most)
    unsure = unbounded(planner, run)
    points = () if unsure else frontier_around(planner, here, scale, judged_by(planner, planner.played))
    longest: dict[int, int | None] = {point.batch_size: point.seq_len for point in points}
    cells = dict(_shown(planner, run, lengths) if run.shows_images else _ranked(planner, run, lengths, scale))
    if unsure:
        cells = {at: (CANNOT_SAY if verdict in ("fits", "tight") else verdict, b) for at, (verdict, b) in cells.items()}
    batches = sorted({batch for batch, _ in cells} | longest.keys())
    return Frontier(
        longest={batch: longest.get(batch) for batch in batches}, lengths=lengths, cells=cells,
        usable_bytes=planner.budget.usable_bytes,
    )  # fmt: skip


def _shown(
    planner: Planner, run: RunConfig, lengths: tuple[int, ...]
) -> Iterator[tuple[tuple[int, int], tuple[str, int]]]:
    """With images: each by its own trace, as far as these are at hand."""
    played_of = judged_by(planner, planner.played)
    for batch in sorted({*BATCHES, run.batch_size}):
        for length in lengths:
            try:
                answer = played_of(of_length(run.with_(padding=None, **at_batch(run, batch)), length))
            except InputError:
                continue
            if answer is not None and answer.verdict is not None and answer.verdict != "will-not-run":
                yield (batch, length), (answer.verdict, answer.floor_bytes)


def _ranked(
    planner: Planner, run: RunConfig, lengths: tuple[int, ...], scale: Scale
) -> Iterator[tuple[tuple[int, int], tuple[str, int]]]:
    for batch in FRONTIER_BATCHES:
        try:
            memory = candidate_memory_at(planner.factory, run, batch, scale)
        except InputError:  # this batch is refused
            continue
        seq = np.array(lengths, dtype=np.int64)
        floors, traced = memory.floors(np.full_like(seq, batch), seq)
        limit, _ = memory.largest_floors()
        for length, floor, by_trace in zip(lengths, floors.tolist(), traced.tolist(), strict=True):
            cell = memory.verdict(floor, traced=by_trace), floor
            if by_trace and limit / NEAR_BY <= floor <= limit * NEAR_BY:
                there = of_length(memory.run, length)
                played = planner.roughly(there)
                if played is not None and played.verdict != "fits":
                    played = planner.played(there)
                if played is not None and played.verdict is not None:
                    cell = played.verdict, played.floor_bytes
            yield (batch, length), cell
