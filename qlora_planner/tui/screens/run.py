"""Run: the knobs of one run, and its memory as they are turned."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll

from qlora_planner.errors import InputError
from qlora_planner.tui.knobs import typed
from qlora_planner.tui.screens.base import Page
from qlora_planner.tui.screens.dialogs import TextScreen
from qlora_planner.tui.widgets import run
from qlora_planner.tui.widgets.common import Breakdown, KnobList
from qlora_planner.tui.widgets.outside import Pane

_SEEN_S = 0.1


class RunScreen(Page):
    """Knobs on the left, figures on the right."""

    place_key = "run"
    SAYS = (
        "One run: its knobs on the left; on the right its verdict, its memory against the card, every phase with the"
        " peak marked, what the memory is for and why, and what is to be known about it."
    )
    AUTO_FOCUS = "KnobList"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "app.recommend", "Best", tooltip="Take the best run of this model on this card"),
        Binding("f", "app.fit_it", "Fit", tooltip="Take the best run that keeps this sequence length"),
        Binding("u", "app.undo", "Undo", tooltip="Back to the run before"),
        Binding("p", "app.pin", "Pin", tooltip="Keep this run for Compare"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._painted: tuple[object, ...] = ()
        self._of: str | None = None  # the model that was shown last

    def body(self) -> ComposeResult:
        """Two columns."""
        with Horizontal(id="columns"):
            with Vertical(id="left"):
                yield KnobList(id="knobs")
                yield Pane(id="says")
            with Vertical(id="right"):
                yield Pane(id="verdict")
                yield Pane(id="bar")
                with VerticalScroll(id="rest", can_focus=False):
                    yield Pane(id="phases")
                    yield Breakdown(id="breakdown")
                    yield Pane(id="why")
                    yield Pane(id="problems")

    def show(self) -> None:
        """The knobs now, and the figures of the last run that is worked out."""
        explorer = self.explorer
        knobs, table = self.query_one(KnobList), self.query_one(Breakdown)
        knobs.plain = table.plain = explorer.plain
        knobs.reads_images = self.state.subject is not None and self.state.subject.reads_images
        knobs.run = self.state.run if self.state.subject is not None else None
        if self.state.model != self._of:  # another model begins at its knobs, wherever one was
            self._of, knobs.at = self.state.model, 0
            self.set_focus(knobs)
        self._says()
        estimate = self.state.estimate
        self._dim()
        right = self.query_one("#right")
        if not right.size.width:  # not laid out yet: lines wrapped for no width would leave their height behind
            return
        theme = self.theme_at(right.size.width - 3)
        if estimate is None:
            self.put("#verdict", Text(self.state.estimated.fault or "", style="magenta"))
        state = id(estimate), theme.width, explorer.theme
        if estimate is None or state == self._painted:
            return
        self._painted = state
        self.put("#verdict", run.verdict_text(estimate, theme))
        self.put("#bar", run.bar_text(estimate, theme))
        self.put("#phases", run.phases_text(estimate, theme))
        self.query_one(Breakdown).rows = tuple(run.breakdown(estimate))
        self._why()
        self.put("#problems", run.problems_text(estimate, theme))

    def _dim(self) -> None:
        """Figures of a run before this one go dim when working it out takes long enough to be seen."""
        if self.state.settled:
            self.query_one("#right").remove_class("stale")
        else:
            self.set_timer(_SEEN_S, lambda: self.query_one("#right").set_class(not self.state.settled, "stale"))

    def _why(self) -> None:
        estimate = self.state.estimate
        if estimate is not None:
            theme = self.theme_at(self.query_one("#right").size.width - 3)
            self.put("#why", run.why_text(estimate, self.query_one(Breakdown).at, theme))

    def _says(self) -> None:
        knobs = self.query_one(KnobList)
        knob = knobs.knobs[knobs.at]
        text = Text(f"{knob.label}: {knob.says}\n", style="dim")
        if self.state.refusal is not None:
            text.append(f"will not run: {self.state.refusal}\n", style="magenta")
        if self.state.subject is not None and self.state.estimate is not None:
            auto = self.state.estimate.resolved.get(knob.name)
            if auto:
                value = getattr(self.state.estimate.run, knob.name)
                text.append(f"auto is {value}: {auto}", style="dim")
        self.put("#says", text)

    def on_knob_list_turned(self, event: KnobList.Turned) -> None:
        """A knob goes one place on."""
        self.explorer.controller.turn(self.query_one(KnobList).knobs[event.index], event.by)

    def on_knob_list_typed(self, event: KnobList.Typed) -> None:
        """An exact value."""
        knob, explorer = self.query_one(KnobList).knobs[event.index], self.explorer
        if self.state.subject is None:
            return
        if knob.read is None:
            explorer.notify(f"{knob.label} has a list of values: left and right go through it")
            return

        def wrong(text: str) -> str | None:
            try:
                typed(knob, self.state.run, text)
            except InputError as error:
                return str(error)
            return None

        def take(text: str | None) -> None:
            if text is not None:
                explorer.controller.set_run(typed(knob, self.state.run, text))

        value = getattr(self.state.run, knob.name)
        shown = (
            "" if value is None or value == {} else str(value) if knob.name != "stack" else knob.show(self.state.run)
        )
        self.app.push_screen(TextScreen(f"{knob.label}: {knob.says}", shown, check=wrong, empty=True), take)

    def on_knob_list_reached(self, event: KnobList.Reached) -> None:
        """Another knob's help."""
        self._says()

    def on_breakdown_reached(self, event: Breakdown.Reached) -> None:
        """Why the line under the cursor is as large as it is."""
        self._why()
        self.query_one("#why").scroll_visible(animate=False)
