"""What lies around a run whose figures leave something out: no row there says that it fits where that could change it.

A search is made without what is left out (see `memory.unmodelled.qualified`); what is shown is judged with it, each row
by its own run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from qlora_planner.memory.estimate import with_interval
from qlora_planner.memory.records import MemoryEstimate, Unmodelled
from qlora_planner.memory.unmodelled.left_out import left_out, whole
from qlora_planner.memory.unmodelled.qualified import CANNOT_SAY, qualified, reach
from qlora_planner.planner.neighbours import PlayedOf
from qlora_planner.planner.planner import Planner, Request
from qlora_planner.planner.records import Fallback, Price
from qlora_planner.record import replaced
from qlora_planner.spec.run import RunConfig

Row = TypeVar("Row", Price, Fallback)


def of_data(request: Request) -> tuple[Unmodelled, ...]:
    """What no figure counts of the data."""
    return () if request.data is None else request.data.unmodelled


def judged(planner: Planner, answer: MemoryEstimate) -> MemoryEstimate:
    """An answer of the search with all that its figures leave out of the model and the data."""
    return qualified(whole(planner.profile, with_interval(answer, planner.budget)), of_data(planner.request))


def judged_by(planner: Planner, played_of: PlayedOf) -> PlayedOf:
    """The same of whatever `played_of` answers."""

    def judge(run: RunConfig) -> MemoryEstimate | None:
        answer = played_of(run)
        return None if answer is None else judged(planner, answer)

    return judge


def unbounded(planner: Planner, run: RunConfig) -> bool:
    """Whether something is left out of `run`, which is resolved, that may take any number of bytes: then neither it nor
    a run around it is said to fit."""
    return reach(_things(planner, run), "up") is None


def _things(planner: Planner, run: RunConfig) -> tuple[Unmodelled, ...]:
    return *left_out(planner.profile, run), *of_data(planner.request)


def verdict_of(planner: Planner, run: RunConfig, answer: MemoryEstimate | None, *, fits: bool) -> str:
    """The verdict of a run that fits by the search or does not, by its own `answer` where it was estimated."""
    if answer is not None:
        return judged(planner, answer).verdict or CANNOT_SAY
    ranked = "fits" if fits else "does-not-fit"
    return CANNOT_SAY if reach(_things(planner, run), "up" if fits else "down") is None else ranked


def open_rows(rows: Iterable[Row], *, unsure: bool) -> tuple[Row, ...]:
    """Rows of which, where nobody is sure, none says that it fits."""
    return tuple(replaced(row, fits=None) if unsure and row.fits else row for row in rows)
