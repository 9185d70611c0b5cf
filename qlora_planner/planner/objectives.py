"""What is best: a row per goal. Runs are ordered by a row's keys, the most important first, higher being better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlora_planner.errors import InputError
from qlora_planner.planner.search_space import QUALITY_RANKS, RANKS
from qlora_planner.record import record

# Speeds nearer to each other than this cannot be told apart beforehand.
NEAR = 0.02


@record
class Columns:
    """What is known of every candidate, shape (candidates,) each; `pace` is tokens per second on the ranking card."""

    pace: NDArray[np.float64]
    floor: NDArray[np.int64]
    batch: NDArray[np.int64]
    seq: NDArray[np.int64]
    rank: NDArray[np.int64]
    quality: NDArray[np.int64]
    plain: NDArray[np.int64]
    fits: NDArray[np.bool_]
    traced: NDArray[np.bool_]
    usual: NDArray[np.bool_]  # with the optimizer that is usual


def near_pace(columns: Columns) -> NDArray[Any]:
    """How far behind the fastest run that fits with the usual optimizer, in steps of `NEAR`: those within one step are
    alike, and another optimizer is ahead where it is faster by a step."""
    pace = np.maximum(columns.pace, 1e-9)
    fits = columns.fits if columns.fits.any() else np.ones_like(columns.fits)
    best = pace[fits & columns.usual if (fits & columns.usual).any() else fits].max()
    steps: NDArray[np.float64] = -np.trunc(np.log(best / pace) / np.log1p(NEAR))
    return steps


@record
class Objective:
    """One goal. `ranks` are tried where the rank is open; `lengths`: every sequence length is tried, at batch 1."""

    name: str
    says: str
    keys: Callable[[Columns], tuple[NDArray[Any], ...]]
    ranks: tuple[int, ...] = ()
    lengths: bool = False
    cards: bool = False


OBJECTIVES = {
    row.name: row
    for row in (
        Objective(
            name="throughput",
            says="most tokens per second",
            keys=lambda c: (near_pace(c), c.quality, c.plain, 1 * c.traced, -c.floor),
        ),
        Objective(
            name="context",
            says="the longest sequence at batch 1",
            keys=lambda c: (c.seq, near_pace(c), c.plain, 1 * c.traced, -c.floor),
            lengths=True,
        ),
        Objective(
            name="rank",
            says="the largest rank",
            keys=lambda c: (c.rank, near_pace(c), c.plain, 1 * c.traced, -c.floor),
            ranks=RANKS,
        ),
        Objective(
            name="quality",
            says="16-bit weights where they fit, then the rank, then speed",
            keys=lambda c: (c.quality, c.rank, near_pace(c), c.plain, 1 * c.traced, -c.floor),
            ranks=QUALITY_RANKS,
        ),
        Objective(
            name="cheapest",
            says="the card of the catalogue on which a token costs least",
            keys=lambda c: (near_pace(c), c.quality, c.plain, 1 * c.traced, -c.floor),
            cards=True,
        ),
    )
}


def find_objective(name: str) -> Objective:
    """Raises InputError listing the objectives for one that is none."""
    if name not in OBJECTIVES:
        raise InputError(f"--objective {name!r} is not known; known: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]
