"""What workers tell the explorer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textual.message import Message

from qlora_planner.spec.run import RunConfig
from qlora_planner.tui.core import Frontier, Place, Subject
from qlora_planner.tui.startup import DataAsked
from qlora_planner.tui.widgets.rows import ModelRow

if TYPE_CHECKING:
    from qlora_planner.data.batches.summary import DataSummary
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.planner.plan import Plan
    from qlora_planner.tui.control.datasets import DataView
    from qlora_planner.tui.control.readiness import Readiness


@dataclass
class Surveyed(Message):
    """The models on a card so far; `done`: all of them."""

    place: Place
    rows: list[ModelRow]
    done: bool


@dataclass
class SurveyedSize(Message):
    """The models on one size of card, for the table with a column per size; `done`: it is the last."""

    size: str
    rows: dict[str, ModelRow]
    done: bool


@dataclass
class Opened(Message):
    """A model on a card, and the run that it starts with; `best`: its recommended run is still to be found."""

    subject: Subject
    run: RunConfig
    show: bool
    best: bool


@dataclass
class Estimated(Message):
    """The memory of a run, or the one line why it has none."""

    subject: Subject
    run: RunConfig
    estimate: MemoryEstimate | None
    fault: str | None


@dataclass
class Planned(Message):
    """The recommended run, looked for when the run was `asked`; `seq_len` is the length that it was to keep, None for
    any."""

    subject: Subject
    asked: RunConfig
    plan: Plan
    seq_len: int | None


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
class Counting(Message):
    """How far a dataset is counted: bytes read, of how many, rows so far."""

    asked: DataAsked
    done: tuple[int, int, int]


@dataclass
class Counted(Message):
    """A dataset's lengths, or the one line why it has none; `uncounted`: for want of a tokenizer."""

    asked: DataAsked
    summary: DataSummary | None
    fault: str | None
    uncounted: bool = False


@dataclass
class Viewed(Message):
    """What a dataset means for a run at one length."""

    wanted: object
    view: DataView | None
    fault: str | None


@dataclass
class Looked(Message):
    """What a launch would lack here."""

    readiness: Readiness


@dataclass
class Heard(Message):
    """A launched process told something, or ended."""


@dataclass
class Began(Message):
    """Something is worked on from now on."""


@dataclass
class Rested(Message):
    """Something that was worked on is done."""


@dataclass
class Told(Message):
    """A word for the reader."""

    text: str
    severity: str = "information"
