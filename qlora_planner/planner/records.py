"""What a plan holds beside its run: a record a row, with the names and the order of the stable JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.planner.search_space import Rule
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig

Change = Mapping[str, Any]  # run options by name, with the value that each would have


@record
class Price:
    """What turning one knob adds to the floor, and the ratio of speeds.

    No figures where the stack refuses it; no bytes, and `fits` None, where no trace of it ships beside the run's own.
    """

    knob: str
    change: Change
    bytes: int | None = None
    speed: float | None = None
    fits: bool | None = None
    note: str | None = None
    refused: str | None = None


@record
class FrontierPoint:
    """The longest sequence of one batch, by its own estimate where `played`; None where not even 64 tokens fit."""

    batch_size: int
    seq_len: int | None
    played: bool = False


@record
class Fallback:
    """One rung of what to give up if memory runs out; bytes and speed are against the run itself. No bytes, and `fits`
    None, where no trace of a task's rung ships."""

    change: Change
    says: str
    bytes: int | None = None
    fits: bool | None = None
    speed: float | None


@record
class Alternative:
    """The best run by another objective, and what it costs in bytes and as a ratio of speeds."""

    objective: str
    change: Change
    buys: str
    bytes: int
    speed: float | None


@record
class Nearest:
    """The run that fits nearest to the one asked for, which does not: `change` is what it has otherwise, `options` what
    to type for it."""

    run: RunConfig
    change: Mapping[str, Any]
    estimate: MemoryEstimate
    options: Mapping[str, Any]


@record
class Advice:
    """What to know before following common advice, with the bytes that it is about."""

    code: str
    message: str
    bytes: int | None


@record
class OtherGpu:
    """The best run of the same model and objective on another card, by its own estimate where it was `played`.

    No figures where nothing can run there.
    """

    gpu: str
    label: str
    usable_bytes: int
    verdict: str = "will-not-run"
    run: Mapping[str, Any] | None = None
    change: Change | None = None
    floor_bytes: int | None = None
    tokens_per_s: float | None = None
    step_s: float | None = None
    usd_per_hour: float | None
    usd_per_million_tokens: float | None = None
    speed_basis: str | None = None
    played: bool = False


@record
class PlanCost:
    """In US dollars; None where price or speed are unknown."""

    usd_per_million_tokens: float | None
    usd_per_hour: float | None


@record
class SearchSummary:
    """How many candidates were looked at, the card they were ranked on, and the rules that left others out."""

    candidates: int
    ranked_on: str
    speed_unknown: bool
    rules: tuple[Rule, ...]


# Of a plan of a run that cannot be, around which nothing was looked for.
UNPRICED = PlanCost(usd_per_million_tokens=None, usd_per_hour=None)
UNSEARCHED = SearchSummary(candidates=0, ranked_on="", speed_unknown=True, rules=())
