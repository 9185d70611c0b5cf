"""Who looks on while a training is prepared and runs; the one here asks nothing and draws nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from qlora_planner.session.packages import Warn

if TYPE_CHECKING:
    from qlora_planner.data.scan import Moved
    from qlora_planner.runs.watch import Watch
    from qlora_planner.session.views.planned import PlanAnswer

# Makes a Watch that words what it hears to somebody.
MakeWatch = Callable[[Warn], "Watch"]
Draw = Callable[[], None]


class Onlooker:
    """Hears the lines of a run one by one; `tell` gets them."""

    def __init__(self, tell: Warn) -> None:
        self.tell = tell

    def confirm(self, proposal: PlanAnswer | str) -> None:
        """What was planned is about to start; raising anything keeps it from that."""

    def counting(self, data: str) -> AbstractContextManager[Moved | None]:
        """Progress of a dataset that is counted inside."""
        return nullcontext()

    def watching(self, make: MakeWatch) -> AbstractContextManager[tuple[Watch, Draw]]:
        """A Watch, and what is called after each thing that it heard."""
        return nullcontext((make(self.tell), lambda: None))
