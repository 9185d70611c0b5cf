"""What screens and keys ask for: every change of what is explored goes through here, and so does what tasks bring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qlora_planner.catalog.gpus.remarks import remarks
from qlora_planner.errors import InputError, PlannerError
from qlora_planner.session.data import DataSource
from qlora_planner.spec.run import RunConfig
from qlora_planner.tui import core
from qlora_planner.tui.control import figures, messages, requests
from qlora_planner.tui.knobs import Knob, changed, turned

if TYPE_CHECKING:
    from qlora_planner.tui.app import Explorer
    from qlora_planner.tui.commands import Target
    from qlora_planner.tui.control.tasks import Tasks
    from qlora_planner.tui.saved_state import Pin, SavedState
    from qlora_planner.tui.startup import Start
    from qlora_planner.tui.state import ExplorerState


_CARD_S = 12.0  # what is said of a card has four lines to read


class Controller:
    """Changes the state, asks the tasks for what it makes necessary, and has the place that is shown painted."""

    def __init__(self, app: Explorer, state: ExplorerState, tasks: Tasks, start: Start) -> None:
        self._app, self._state, self._tasks = app, state, tasks
        self._restored: SavedState | None = None if start.model else start.saved
        self._counts_at_once = start.data is not None

    # ------------------------------------------------------------------ card, model, run

    def use_card(self, text: str) -> bool:
        """Explore another card; whether that could be done."""
        state = self._state
        try:
            state.card = core.card_of(text, state.profiles)
        except PlannerError as error:
            self._app.notify(core.fault_words(error), severity="error")
            return False
        self._tasks.want(figures.SURVEY)
        self.say_of_card()
        if state.model is not None:
            self.read_model(state.model, state.run, show=False)
        self._app.refresh_page()
        return True

    def say_of_card(self) -> None:
        """What to know about the card, over whatever place is shown; Fit has it on the screen."""
        if self._app.current_mode != "fit":
            for remark in remarks(self._state.card.gpu):
                self._app.notify(f"{remark.message}; fix: {remark.fix}", severity="warning", timeout=_CARD_S)

    def read_model(self, model: str, run: RunConfig | None, *, show: bool) -> None:
        """Open a model on the card now, in a while; `run` None is its recommended one."""
        self._tasks.begin("open", requests.open_model, model, self._state.card, run, show)

    def open_model(self, model: str) -> None:
        """Explore a model on the card now, from its recommended run."""
        row = next((row for row in self._state.rows or () if row.model_id == model), None)
        self.read_model(model, None if row is None else core.start_run(row), show=True)
        self._app.refresh_page()

    def open_pin(self, pin: Pin) -> None:
        """Explore a pinned run, on its card."""
        if self._state.card.asked == pin.card or self.use_card(pin.card):
            self.read_model(pin.model, RunConfig(**dict(pin.run)), show=True)

    def turn(self, knob: Knob, by: int) -> None:
        """One knob goes one place on or back; at its end nothing happens."""
        if self._state.subject is None:
            return
        run = turned(knob, self._state.subject.profile, self._state.run, by)
        if run is not None:
            self.set_run(run)

    def change(self, change: Mapping[str, Any]) -> None:
        """Some options become others."""
        try:
            self.set_run(changed(self._state.run, change))
        except InputError as error:
            self._app.notify(core.fault_words(error), severity="error")

    def set_run(self, run: RunConfig) -> None:
        """Another run, which can be undone."""
        if run != self._state.run:
            self._state.change(run)
            self._changed()

    def undo(self) -> None:
        """Back to the run before."""
        if self._state.undo():
            self._changed()
        else:
            self._app.notify("nothing to undo")

    def recommend(self, *, keep_length: bool) -> None:
        """Look for the best run of the model on the card, of any length or of that of the run now."""
        subject = self._state.subject
        if subject is None:
            self.say_no_model()
            return
        self._tasks.begin("plan", requests.recommend, subject, self._state.run, keep_length)
        self._app.refresh_page()

    def say_no_model(self) -> None:
        """Nothing is explored yet."""
        self._app.notify("no model yet: Enter on one in Fit (1) opens it")

    def _changed(self) -> None:
        self._tasks.want(figures.ESTIMATE)
        self._app.refresh_page()

    # ------------------------------------------------------------------ pins and files

    def pin(self) -> None:
        """Keep the run now for comparison."""
        if self._state.subject is None:
            self.say_no_model()
        elif self._state.pin():
            self._app.notify(f"pinned; 5 compares {len(self._state.pins)}")
        else:
            self._app.notify("this run is pinned already")

    def unpin(self, at: int) -> None:
        """Forget one pinned run."""
        self._state.unpin(at)
        self._app.refresh_page()

    def export(self, target: Target, kind: str, path: str, *, force: bool) -> None:
        """Write a run as a plan, a script or another tool's config."""
        state, (model, card, _) = self._state, target
        same = state.subject is not None and state.model == model and state.subject.card is card
        data = None if state.data_source is None else state.data_source.path
        self._tasks.begin("export", requests.export, state.subject if same else None, target, data, kind, path, force)

    # ------------------------------------------------------------------ dataset

    def use_data(self, source: DataSource) -> None:
        """Count another dataset."""
        self._state.use_data(source)
        self._tasks.want(figures.DATA)
        self._app.refresh_page()

    def name_data(self, path: str | None) -> None:
        """Count the dataset at a path, in the way that the one before was counted."""
        before = self._state.data_source
        if path is not None:
            self.use_data(DataSource(path=path) if before is None else replace(before, path=path))

    def ask_tokenizer(self) -> None:
        """Whose tokenizer counts the dataset."""
        fault = self._state.data_fault
        if self._app.under_dialog or self._state.data_source is None:
            return
        from qlora_planner.tui.screens.dialogs import TextScreen

        why = "" if fault is None else f"{fault}. "
        asks = "Whose tokenizer counts it? A folder with a tokenizer.json, a Hub id, or a guess: characters a token"
        self._app.push_screen(TextScreen(f"{why}{asks}", "", hint="./my-model, or 4"), self.name_tokenizer)

    def name_tokenizer(self, text: str | None) -> None:
        """Count the dataset with another tokenizer, or by so many characters a token."""
        source = self._state.data_source
        if text is None or source is None:
            return
        try:
            guess = float(text)
        except ValueError:
            self.use_data(replace(source, tokenizer=text, chars_per_token=None))
            return
        if 0 < guess < 1000:
            self.use_data(replace(source, tokenizer=None, chars_per_token=guess))
        else:
            self._app.notify(f"{text} is no number of characters that a token has, as 4", severity="error")

    def cut_at(self, tokens: int) -> None:
        """Move the slider."""
        self._state.cut = tokens
        self._app.refresh_page()

    # ------------------------------------------------------------------ what tasks bring

    def answered(self, message: messages.Answered) -> None:
        """A figure; where card, model or knobs have moved on it came too late, and the run now is worked out."""
        taken, answer = self._tasks.take(message), message.answer
        self._tasks.want(figures.ESTIMATE)
        if taken and answer is not None and answer.done and message.figure is figures.SURVEY:
            self._surveyed()
        self._app.refresh_page()
        if taken and answer is not None and self._app.current_mode == "data":
            from qlora_planner.tui.control.datasets import NoTokenizerError

            if message.figure is figures.DATA and isinstance(answer.error, NoTokenizerError):
                self.ask_tokenizer()

    def _surveyed(self) -> None:
        """The whole catalogue is there: go where the explorer was left, or make ready for the first model."""
        restored, self._restored = self._restored, None
        if restored is not None and restored.model is not None and self._state.subject is None:
            run = RunConfig() if restored.run is None else RunConfig(**dict(restored.run))
            self.read_model(restored.model, run, show=False)
        else:
            self._tasks.begin("warm", requests.warm)
        if self._counts_at_once and self._state.data is None:
            self._tasks.want(figures.DATA)

    def opened(self, message: messages.Opened) -> None:
        """A model, with the run that it starts with; on a card that was left meanwhile it came too late."""
        if message.subject.card is not self._state.card:
            return
        self._state.open(message.subject, message.run, keep_undo=not message.show)
        self._changed()
        if message.show:
            self._app.go("run")
        if message.best:
            self._tasks.begin("plan", requests.recommend, message.subject, self._state.run, False)

    def planned(self, message: messages.Planned) -> None:
        """Take the recommended run, unless somebody has changed the run since it was looked for."""
        state, notify = self._state, self._app.notify
        if message.subject is not state.subject:
            return
        if message.asked != state.run:
            notify("the run was changed meanwhile: it stays, and the best run that was looked for is not taken")
            return
        from qlora_planner.report.parts.plan_parts import nearest_words

        plan = message.plan
        words = nearest_words(plan, {} if message.seq_len is None else {"seq_len": message.seq_len})
        if words is not None:
            notify(f"{words}; r takes the best run of any length", severity="warning")
            return
        self.set_run(RunConfig(**dict(plan.options)))
        if plan.estimate.verdict in ("does-not-fit", "will-not-run"):
            notify("no run of this model fits; the one that needs least is shown", severity="warning")
