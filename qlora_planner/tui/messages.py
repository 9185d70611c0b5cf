"""What workers tell the explorer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textual.message import Message

from qlora_planner.memory import MemoryEstimate
from qlora_planner.planner.plan import Plan
from qlora_planner.planner.survey import SurveyRow
from qlora_planner.run import RunConfig
from qlora_planner.tui.core import Frontier, Place, Subject


@dataclass
class Surveyed(Message):
    """The models on a card so far; `done`: all of them."""

    place: Place
    rows: list[SurveyRow]
    done: bool


@dataclass
class Opened(Message):
    """A model on a card, and the run that it starts with."""

    subject: Subject
    run: RunConfig
    show: bool


@dataclass
class Estimated(Message):
    """The memory of a run, or the one line why it has none."""

    subject: Subject
    run: RunConfig
    estimate: MemoryEstimate | None
    fault: str | None


@dataclass
class Planned(Message):
    """The recommended run."""

    subject: Subject
    plan: Plan


@dataclass
class Surrounded(Message):
    """What lies around a run."""

    subject: Subject
    run: RunConfig
    frontier: Frontier | None
    prices: list[dict[str, Any]]
    fault: str | None


@dataclass
class Pinned(Message):
    """The estimates of pinned runs, in their order; None for one that cannot be had."""

    estimates: list[MemoryEstimate | None]


@dataclass
class Told(Message):
    """A word for the reader."""

    text: str
    severity: str = "information"
