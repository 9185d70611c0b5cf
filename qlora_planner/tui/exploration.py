"""What is explored now, and what is known of it: screens read these attributes, and only the app changes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.app import App

from qlora_planner.spec.run import RunConfig
from qlora_planner.text import short
from qlora_planner.tui.startup import DataAsked, Start
from qlora_planner.tui.state import Pin, State
from qlora_planner.tui.widgets.rows import ModelRow

if TYPE_CHECKING:
    from qlora_planner.data.batches.summary import DataSummary
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.tui.control.child_process import Launch
    from qlora_planner.tui.control.datasets import DataView
    from qlora_planner.tui.control.readiness import Readiness
    from qlora_planner.tui.core import Frontier, Place, Subject


class Exploration(App[None]):
    """The attributes of the explorer."""

    def __init__(self, start: Start) -> None:
        super().__init__()
        state: State = start.state
        self._start = start
        self._restored: State | None = None if start.model else state
        self.sort, self.group = state.sort, state.group
        self.pins: list[Pin] = list(state.pins)
        self.place: Place = start.place
        self.rows: list[ModelRow] | None = None
        self.surveyed = False  # whether `rows` are all
        self.wide = False  # whether the table has a column per size of card
        self.by_card: dict[str, dict[str, ModelRow]] = {}  # size of card -> model -> row, as far as surveyed
        self.subject: Subject | None = None
        self.run_now = RunConfig()
        self.estimate: MemoryEstimate | None = None
        self.fault: str | None = None  # why the run now has no estimate
        self.refusal: str | None = None  # why the run now cannot work
        self.settled = True  # whether `estimate` is that of the run now
        self.frontier: Frontier | None = None
        self.prices: list[dict[str, Any]] | None = None
        self.pinned: list[MemoryEstimate | None] = []
        self.data_asked: DataAsked | None = start.data
        if start.data is None and state.data is not None:
            self.data_asked = DataAsked(**dict(state.data))
        self.data: DataSummary | None = None
        self.data_fault: str | None = None
        self.data_done: tuple[int, int, int] | None = None  # bytes read, of, rows counted
        self.data_view: DataView | None = None
        self.cut: int | None = None  # where the slider stands, in tokens; None: at the run's own length
        self.launch: Launch | None = None
        self.readiness: Readiness | None = None
        self.device = "cuda"  # where a launch would run
        self.unkept: str | None = None  # why the place could not be kept
        self.busy: list[str] = []
        self._around_fault: str | None = None
        self._around_of: object = None
        self._undo: list[RunConfig] = []
        self._estimating = self._surrounding = self._pinning = self._viewing = self._widening = False
        self._pinned_of: object = None
        self._viewed_of: object = None
        self._looked_at: object = None
        self._left = False

    def notify(self, message: str, **more: Any) -> None:
        """A word over the screen. Most of them name something from outside: none is markup, all are one line."""
        super().notify(short(message), **{**more, "markup": False})

    @property
    def plain(self) -> bool:
        """Whether the terminal shows ASCII alone."""
        return self._start.plain

    @property
    def profiles(self) -> str | None:
        """The folder of --profiles."""
        return self._start.profiles

    @property
    def busy_with(self) -> str:
        """What is worked on, in words; empty when nothing is."""
        dots = ".." if self.plain else "…"
        return f"{self.busy[-1]} {dots}" if self.busy else "" if self.settled else f"playing this run {dots}"

    @property
    def idle(self) -> bool:
        """Whether no worker has anything left to do; a launched process counts as work."""
        working = self._estimating or self._surrounding or self._pinning or self._viewing or self._widening
        return not working and self.data_done is None and all(worker.is_finished for worker in self.workers)

    @property
    def model(self) -> str | None:
        """The model that is explored, as it can be named again."""
        return None if self.subject is None else self.subject.model

    def around_words(self) -> str:
        """Why there is no frontier yet."""
        if self.subject is None:
            return "No model yet: choose one in Fit (1)."
        return self._around_fault or "ranking what lies around this run ..."
