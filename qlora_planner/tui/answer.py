"""A figure with what it was worked out from, so that whether it is still that of the run now can be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from qlora_planner.errors import PlannerError
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig
from qlora_planner.tui.core import fault_words

if TYPE_CHECKING:
    from qlora_planner.planner.records import Price
    from qlora_planner.tui.core import Frontier

Value = TypeVar("Value")
Inputs = tuple[Any, ...]
# Inputs that are equal when their values are; a model, a card or a dataset is the same only when it is the same object.
_BY_VALUE = (RunConfig, str, int, tuple)


def same_inputs(before: Inputs | None, now: Inputs | None) -> bool:
    """Whether a figure that was worked out from `before` is that of `now`; None is of nothing."""
    if before is None or now is None or len(before) != len(now):
        return False
    return all(a is b or (isinstance(a, _BY_VALUE) and a == b) for a, b in zip(before, now, strict=True))


@dataclass
class Answer(Generic[Value]):
    """A figure and what it was worked out from: `value`, or the `error` for which there is none.

    `done` False says that more is to come; `progress` is then how far a dataset is: bytes read, of, rows counted.
    """

    inputs: Inputs | None = None
    value: Value | None = None
    error: PlannerError | None = None
    done: bool = True
    progress: tuple[int, int, int] = (0, 0, 0)

    def of(self, inputs: Inputs | None) -> bool:
        """Whether it is the answer for these inputs."""
        return same_inputs(self.inputs, inputs)

    @property
    def fault(self) -> str | None:
        """The error as one line for the screen."""
        return None if self.error is None else fault_words(self.error)


@record
class Surroundings:
    """What lies around a run: the grid, and a row per knob."""

    frontier: Frontier
    prices: list[Price]
