"""The explorer: what is explored now, the workers that work it out, and the five places that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from textual import work
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from qlora_planner.errors import InputError, PlannerError
from qlora_planner.memory import MemoryEstimate
from qlora_planner.planner.survey import SurveyRow
from qlora_planner.run import RunConfig
from qlora_planner.tui import core, messages
from qlora_planner.tui.core import Frontier, Place, Subject
from qlora_planner.tui.knobs import Knob, changed, turned
from qlora_planner.tui.screens.base import PLACES, Page
from qlora_planner.tui.screens.compare import CompareScreen
from qlora_planner.tui.screens.dialogs import CardScreen, CommandScreen, FileScreen, HelpScreen, Palette
from qlora_planner.tui.screens.fit import FitScreen
from qlora_planner.tui.screens.frontier import FrontierScreen
from qlora_planner.tui.screens.prices import PricesScreen
from qlora_planner.tui.screens.run import RunScreen
from qlora_planner.tui.state import Pin, State, read_state, write_state
from qlora_planner.tui.themes import HIGH_CONTRAST, THEMES

_WRITING = "writing the plan"
_MOST_UNDONE, _MOST_PINS, _FIRST_ROWS = 100, 24, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What the explorer starts with; `survey` gives the rows of `qlora-plan --gpu`, likely ones first."""

    survey: Callable[[Place], Iterable[SurveyRow]]
    card: str | None
    profiles: str | None
    state_path: Path


class Explorer(App[None]):
    """`qlora-plan tui`. Screens read its attributes and ask it for changes; nothing else has state."""

    TITLE = "qlora-plan"
    CSS_PATH = "app.tcss"
    MODES: ClassVar[dict[str, Any]] = {
        "fit": FitScreen, "run": RunScreen, "frontier": FrontierScreen, "prices": PricesScreen,
        "compare": CompareScreen,
    }  # fmt: skip
    DEFAULT_MODE = "fit"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(number), f"go('{key}')", label, show=False)
            for number, (key, label) in enumerate(PLACES, 1)
        ),
        Binding("g", "card", "Card"),
        Binding("c", "command", "Copy"),
        Binding("e", "export", "Export"),
        Binding("t", "next_theme", "Theme", show=False),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "leave", "Quit"),
    ]  # fmt: skip

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.register_theme(HIGH_CONTRAST)
        self._start = start
        state, self._state_fault = read_state(start.state_path)
        self._restored: State | None = state
        self.sort, self.group = state.sort, state.group
        self.pins: list[Pin] = list(state.pins)
        if state.theme in self.available_themes:
            self.theme = state.theme
        self.place: Place | None = None
        self.rows: list[SurveyRow] | None = None
        self.surveyed = False  # whether `rows` are all
        self.subject: Subject | None = None
        self.run_now = RunConfig()
        self.estimate: MemoryEstimate | None = None
        self.fault: str | None = None  # why the run now has no estimate
        self.refusal: str | None = None  # why the run now cannot work
        self.settled = True  # whether `estimate` is that of the run now
        self.frontier: Frontier | None = None
        self.prices: list[dict[str, Any]] | None = None
        self.pinned: list[MemoryEstimate | None] = []
        self._around_fault: str | None = None
        self._around_of: object = None
        self._undo: list[RunConfig] = []
        self._estimating = self._surrounding = self._pinning = False
        self._leaving = False
        self.unkept: str | None = None  # why the place could not be kept
        self._pinned_of: object = None
        self.busy: list[str] = []

    @property
    def busy_with(self) -> str:
        """What is worked on, in words; empty when nothing is."""
        return f"{self.busy[-1]} …" if self.busy else "" if self.settled else "playing this run …"

    @property
    def idle(self) -> bool:
        """Whether no worker has anything left to do."""
        working = self._estimating or self._surrounding or self._pinning
        return not working and all(worker.is_finished for worker in self.workers)

    def on_mount(self) -> None:
        """Find the card, then survey it."""
        if self._state_fault:
            self.notify(self._state_fault, severity="warning")
        restored = self._restored.card if self._restored is not None else None
        self.use_card(self._start.card or restored, fallback=self._start.card is None)

    def use_card(self, text: str | None, *, fallback: bool = False) -> None:
        """Explore another card; with `fallback`, one that means nothing any more gives way to what is found here."""
        try:
            place = core.place_of(text, self._start.profiles)
        except PlannerError as error:
            if not fallback:
                self.notify(core.fault_words(error), severity="error")
                if self.place is not None:
                    return
            place = core.place_of(None, self._start.profiles)
        self.place, self.rows, self.surveyed = place, None, False
        self._survey(place)
        model = self.subject.profile.id if self.subject is not None else None
        if model is not None:
            self._open(model, place, self.run_now, show=False)
        self.refresh_page()

    def refresh_page(self) -> None:
        """Paint the current place."""
        page = next((one for one in reversed(self.screen_stack) if isinstance(one, Page)), None)
        if page is not None:
            page.repaint()

    # ------------------------------------------------------------------ workers

    @work(thread=True, exit_on_error=True, group="survey")
    def _survey(self, place: Place) -> None:
        rows: list[SurveyRow] = []
        told = 0
        with self._doing("surveying"):
            try:
                for row in self._start.survey(place):
                    rows.append(row)
                    if place is not self.place:  # another card was picked meanwhile
                        return
                    if len(rows) >= max(_FIRST_ROWS, 2 * told):
                        told = len(rows)
                        self.post_message(messages.Surveyed(place, rows[:], False))
            except PlannerError as error:
                self.post_message(messages.Told(core.fault_words(error), "error"))
        self.post_message(messages.Surveyed(place, rows, True))

    @work(thread=True, group="open")
    def _open(self, model: str, place: Place, run: RunConfig, *, show: bool) -> None:
        with self._doing(f"reading {model}"):
            try:
                found = Subject.of(model, place, self._start.profiles)
            except PlannerError as error:
                self.post_message(messages.Told(core.fault_words(error), "error"))
                return
        self.post_message(messages.Opened(found, run, show))

    @work(thread=True, group="estimate")
    def _estimate(self, subject: Subject, run: RunConfig) -> None:
        found, fault = None, None
        try:
            found = subject.estimate(run)
        except PlannerError as error:
            fault = core.fault_words(error)
        self.post_message(messages.Estimated(subject, run, found, fault))

    @work(thread=True, group="plan")
    def _recommend(self, subject: Subject) -> None:
        with self._doing("looking for the best run"):
            try:
                found = subject.plan()
            except PlannerError as error:
                self.post_message(messages.Told(core.fault_words(error), "error"))
                return
        self.post_message(messages.Planned(subject, found))

    @work(thread=True, group="around")
    def _surround(self, subject: Subject, run: RunConfig) -> None:
        frontier, prices, fault = None, [], None
        with self._doing("ranking what lies around"):
            try:
                frontier, prices = subject.frontier(run), subject.prices(run)
            except PlannerError as error:
                fault = core.fault_words(error)
        self.post_message(messages.Surrounded(subject, run, frontier, prices, fault))

    @work(thread=True, group="pins")
    def _estimate_pins(self, pins: tuple[Pin, ...]) -> None:
        found: list[MemoryEstimate | None] = []
        subjects: dict[tuple[str, str], Subject] = {}
        with self._doing("estimating pinned runs"):
            for pin in pins:
                try:
                    key = pin.model, pin.card
                    if key not in subjects:
                        place = core.place_of(pin.card, self._start.profiles)
                        subjects[key] = Subject.of(pin.model, place, self._start.profiles)
                    found.append(subjects[key].estimate(RunConfig(**dict(pin.run))))
                except PlannerError as error:
                    self.post_message(messages.Told(core.fault_words(error), "warning"))
                    found.append(None)
        self.post_message(messages.Pinned(found))

    @work(thread=True, group="export")
    def _export(self, subject: Subject, run: RunConfig, path: str) -> None:
        from qlora_planner.exchange.files import write_text
        from qlora_planner.exchange.plan_file import render_plan_file

        with self._doing(_WRITING):
            try:
                write_text(path, render_plan_file(subject.plan_of(run).to_dict()))
            except PlannerError as error:
                self.post_message(messages.Told(core.fault_words(error), "error"))
                return
        self.post_message(messages.Told(f"wrote {path}"))

    def _doing(self, words: str) -> _Doing:
        return _Doing(self.busy, words)

    # ------------------------------------------------------------------ what workers found

    def on_surveyed(self, message: messages.Surveyed) -> None:
        """The table of the card now; of another, it came too late."""
        if message.place is not self.place:
            return
        self.rows, self.surveyed = message.rows, message.done
        if not message.done:
            self.refresh_page()
            return
        restored, self._restored = self._restored, None
        if restored is not None and restored.model is not None and self.subject is None:
            run = RunConfig() if restored.run is None else RunConfig(**dict(restored.run))
            self._open(restored.model, message.place, run, show=False)
        self.refresh_page()

    def on_opened(self, message: messages.Opened) -> None:
        """A model, with the run that it starts with."""
        if message.subject.place is not self.place:
            return
        self.subject = message.subject
        self.estimate = None
        if message.show:
            self._undo.clear()
        self._take(message.run)
        if message.show:
            self.action_go("run")

    def on_estimated(self, message: messages.Estimated) -> None:
        """The figures of a run; where the knobs have moved on, the next is worked out."""
        self._estimating = False
        if message.subject is self.subject and message.run == self.run_now:
            self._show_estimate(message.estimate, message.fault)
        else:
            self._want_estimate()

    def on_planned(self, message: messages.Planned) -> None:
        """Take the recommended run."""
        if message.subject is not self.subject:
            return
        self.set_run(RunConfig(**dict(message.plan.options)))

    def on_surrounded(self, message: messages.Surrounded) -> None:
        """Frontier and prices of a run."""
        self._surrounding = False
        if message.subject is self.subject and message.run == self.run_now:
            self.frontier, self.prices, self._around_fault = message.frontier, message.prices, message.fault
            if message.fault is not None:
                self.frontier, self.prices = None, None
        else:
            self._around_of = None
        self.refresh_page()

    def on_pinned(self, message: messages.Pinned) -> None:
        """The figures of pinned runs."""
        self._pinning = False
        self.pinned = message.estimates
        self.refresh_page()

    def on_told(self, message: messages.Told) -> None:
        """A word for the reader."""
        self.notify(message.text, severity=message.severity)  # type: ignore[arg-type]
        self.refresh_page()

    # ------------------------------------------------------------------ what screens ask for

    def open_model(self, model: str) -> None:
        """Explore a model on the card now, from its recommended run."""
        row = next((one for one in self.rows or () if one.model_id == model), None)
        if self.place is not None:
            self._open(model, self.place, RunConfig() if row is None else core.start_run(row), show=True)
            self.refresh_page()

    def open_pin(self, pin: Pin) -> None:
        """Explore a pinned run, on its card."""
        if self.place is None or self.place.asked != pin.card:
            self.use_card(pin.card)
        if self.place is not None and self.place.asked == pin.card:
            self._open(pin.model, self.place, RunConfig(**dict(pin.run)), show=True)

    def turn(self, knob: Knob, by: int) -> None:
        """One knob goes one place on or back; at its end nothing happens."""
        if self.subject is None:
            return
        run = turned(knob, self.subject.profile, self.run_now, by)
        if run is not None:
            self.set_run(run)

    def change(self, change: Mapping[str, Any]) -> None:
        """Some options become others."""
        try:
            self.set_run(changed(self.run_now, change))
        except InputError as error:
            self.notify(core.fault_words(error), severity="error")

    def set_run(self, run: RunConfig) -> None:
        """Another run, which can be undone."""
        if run == self.run_now:
            return
        self._undo = [*self._undo[-_MOST_UNDONE:], self.run_now]
        self._take(run)

    def _take(self, run: RunConfig) -> None:
        self.run_now = run
        self.frontier, self.prices, self._around_of, self._around_fault = None, None, None, None
        self.refusal = None if self.subject is None else self.subject.refusal(run)
        self._want_estimate()
        self.refresh_page()

    def _want_estimate(self) -> None:
        """At most one run is worked out at a time: turning a knob quickly waits for the last value only."""
        if self.subject is None:
            return
        known = self.subject.known(self.run_now)
        if known is not None:
            self._show_estimate(known, None)
            return
        self.settled = False
        if not self._estimating:
            self._estimating = True
            self._estimate(self.subject, self.run_now)

    def _show_estimate(self, found: MemoryEstimate | None, fault: str | None) -> None:
        self.settled, self.fault = True, fault
        self.estimate = found
        self.refresh_page()

    def want_surroundings(self) -> None:
        """Work out frontier and prices of the run now, once."""
        if self.subject is None or self._surrounding or self._around_of == (id(self.subject), repr(self.run_now)):
            return
        self._around_of = id(self.subject), repr(self.run_now)
        self._surrounding = True
        self._surround(self.subject, self.run_now)

    def around_words(self) -> str:
        """Why there is no frontier yet."""
        if self.subject is None:
            return "No model yet: choose one in Fit (1)."
        return self._around_fault or "ranking what lies around this run …"

    def want_pinned(self) -> None:
        """Work out the figures of pins, once for each set of them."""
        state = tuple(repr(pin) for pin in self.pins)
        if self._pinning or self._pinned_of == state:
            return
        self._pinned_of, self._pinning = state, True
        self._estimate_pins(tuple(self.pins))

    def unpin(self, at: int) -> None:
        """Forget one pinned run."""
        del self.pins[at]
        if at < len(self.pinned):
            self.pinned = [*self.pinned[:at], *self.pinned[at + 1 :]]
        self.refresh_page()

    def typed(self, pin: Pin) -> dict[str, Any]:
        """What a pinned run has beside defaults."""
        return core.typed_options(RunConfig(**dict(pin.run)))

    # ------------------------------------------------------------------ keys

    def action_go(self, place: str) -> None:
        """Another of the five places."""
        if self.current_mode != place and not self._over():
            self.switch_mode(place)

    def action_card(self) -> None:
        """Pick a card."""
        if not self._over():
            self.push_screen(CardScreen(core.card_names(self._start.profiles)), self._card_picked)

    def _card_picked(self, name: str | None) -> None:
        if name is not None:
            self.use_card(name)

    def action_recommend(self) -> None:
        """Look for the best run of the model on the card."""
        if self.subject is not None:
            self._recommend(self.subject)
            self.refresh_page()

    def action_undo(self) -> None:
        """Back to the run before."""
        if self._undo:
            self._take(self._undo.pop())
        else:
            self.notify("nothing to undo")

    def action_pin(self) -> None:
        """Keep the run now for comparison."""
        if self.subject is None or self.place is None:
            self.notify("no model yet: choose one in Fit (1)")
            return
        pin = Pin(model=self.subject.profile.id, card=self.place.asked, run=self.run_now.to_dict())
        if pin in self.pins:
            self.notify("this run is pinned already")
            return
        self.pins = [*self.pins, pin][-_MOST_PINS:]
        self._pinned_of = None
        self.notify(f"pinned; 5 compares {len(self.pins)}")

    def action_command(self) -> None:
        """Show and copy the command line of what is on the screen."""
        if self.place is None or self._over():
            return
        if self.subject is None or self.current_mode == "fit":
            text = f"qlora-plan --gpu {self.place.asked}"
        else:
            text = core.command_line(self.subject.profile.id, self.place, self.run_now)
        self.copy_to_clipboard(text)
        self.push_screen(CommandScreen(text))

    def action_export(self) -> None:
        """Write the run as a plan file."""
        if self._over():
            return
        if self.subject is None:
            self.notify("no model yet: choose one in Fit (1)")
            return
        name = self.subject.profile.id.rpartition("/")[2]
        self.push_screen(FileScreen(f"{name}.plan.yaml"), self._file_named)

    def _file_named(self, path: str | None) -> None:
        if path is not None and self.subject is not None:
            self._export(self.subject, self.run_now, path)

    def action_help(self) -> None:
        """The keys."""
        if not self._over():
            self.push_screen(HelpScreen())

    def action_command_palette(self) -> None:
        """Every command, described."""
        if not self._over():
            self.push_screen(Palette(id="--command-palette"))

    def action_next_theme(self) -> None:
        """Dark, light, high contrast."""
        at = THEMES.index(self.theme) if self.theme in THEMES else -1
        self.theme = THEMES[(at + 1) % len(THEMES)]

    def action_leave(self) -> None:
        """Leave. A file that is being written is waited for, unless asked twice."""
        if _WRITING in self.busy and not self._leaving:
            self._leaving = True
            self.notify(f"still {_WRITING}; q again leaves without it")
            return
        self.save_state()
        self.place = None  # a survey under way ends at its next row
        self.exit()

    async def action_quit(self) -> None:
        """The framework's own way out keeps the place too."""
        self.action_leave()

    def save_state(self) -> None:
        """Keep where we are."""
        subject = self.subject
        state = State(
            theme=self.theme, sort=self.sort, group=self.group,
            card=None if self.place is None or self.place.note else self.place.asked,
            model=None if subject is None else subject.profile.id,
            run=None if subject is None else self.run_now.to_dict(), pins=tuple(self.pins),
        )  # fmt: skip
        try:
            write_state(self._start.state_path, state)
        except InputError as error:
            self.unkept = core.fault_words(error)

    def _over(self) -> bool:
        """Whether a dialog is open."""
        return not isinstance(self.screen, Page)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """What the palette offers."""
        for key, label in PLACES:
            yield SystemCommand(label, f"Go to {label}", lambda key=key: self.action_go(key))
        yield SystemCommand("Card", "Explore another card, real or simulated", self.action_card)
        yield SystemCommand("Recommended run", "Take the best run of this model on this card", self.action_recommend)
        yield SystemCommand("Undo", "Back to the run before", self.action_undo)
        yield SystemCommand("Pin", "Keep this run for comparison", self.action_pin)
        yield SystemCommand("Command line", "Show and copy the command that gives these figures", self.action_command)
        yield SystemCommand("Export", "Write this run as a plan file", self.action_export)
        yield SystemCommand("Next theme", "Dark, light, high contrast", self.action_next_theme)
        yield SystemCommand("Help", "The keys", self.action_help)
        yield SystemCommand("Quit", "Leave; the place is kept", self.action_leave)


class _Doing:
    """While it is open, `busy` says so."""

    def __init__(self, busy: list[str], words: str) -> None:
        self._busy, self._words = busy, words

    def __enter__(self) -> None:
        self._busy.append(self._words)

    def __exit__(self, *_: object) -> None:
        self._busy.remove(self._words)
