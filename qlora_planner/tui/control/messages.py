"""What background work tells the explorer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textual.message import Message

from qlora_planner.spec.run import RunConfig
from qlora_planner.tui.answer import Answer, Inputs
from qlora_planner.tui.core import Subject

if TYPE_CHECKING:
    from qlora_planner.planner.plan import Plan
    from qlora_planner.tui.control.figures import Figure


@dataclass
class Answered(Message):
    """A figure of some inputs, or a part of it; `answer` None: it was given up, for nobody wants it any more."""

    figure: Figure
    inputs: Inputs
    answer: Answer[Any] | None


@dataclass
class Opened(Message):
    """A model on a card, and the run that it starts with; `best`: its recommended run is still to be found."""

    subject: Subject
    run: RunConfig
    show: bool
    best: bool


@dataclass
class Planned(Message):
    """The recommended run, looked for when the run was `asked`; `seq_len` is the length that it was to keep, None for
    any."""

    subject: Subject
    asked: RunConfig
    plan: Plan
    seq_len: int | None


@dataclass
class ChangedWork(Message):
    """Something is worked on from now on, or no longer; or a launched process told something, or ended."""


@dataclass
class Told(Message):
    """A word for the reader."""

    text: str
    severity: str = "information"
