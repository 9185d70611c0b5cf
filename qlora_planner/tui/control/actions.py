"""What screens ask of the explorer: another card, model, run or dataset, and figures that are not worked out yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from textual.screen import Screen

from qlora_planner.errors import InputError, PlannerError
from qlora_planner.spec.run import RunConfig
from qlora_planner.tui import core
from qlora_planner.tui.control.workers import Workers
from qlora_planner.tui.knobs import Knob, changed, turned
from qlora_planner.tui.screens.base import Page
from qlora_planner.tui.startup import DataAsked
from qlora_planner.tui.state import Pin

_MOST_UNDONE, _MOST_PINS = 100, 24
SIZES = ("8GB", "12GB", "16GB", "24GB", "32GB", "48GB", "80GB")


class Asks(Workers):
    """Every change of what is explored goes through here."""

    def refresh_page(self) -> None:
        """Paint the current place."""
        page = next((one for one in reversed(self.screen_stack) if isinstance(one, Page)), None)
        if page is not None:
            page.repaint()

    @property
    def under_dialog(self) -> bool:
        """Whether a dialog is open."""
        return not isinstance(self.screen, Page)

    @property
    def page(self) -> Screen[Any] | None:
        """The place that is shown, under whatever dialog."""
        return next((one for one in reversed(self.screen_stack) if isinstance(one, Page)), None)

    def go(self, place: str) -> None:
        """Another of the places."""
        if self.current_mode != place and not self.under_dialog:
            self.switch_mode(place)

    def use_card(self, text: str) -> bool:
        """Explore another card; whether that could be done."""
        try:
            place = core.place_of(text, self.profiles)
        except PlannerError as error:
            self.notify(core.fault_words(error), severity="error")
            return False
        self.place, self.rows, self.surveyed = place, None, False
        self._survey(place)
        if self.subject is not None:
            self._open(self.subject.model, place, self.run_now, show=False)
        self.refresh_page()
        return True

    def open_model(self, model: str) -> None:
        """Explore a model on the card now, from its recommended run."""
        row = next((one for one in self.rows or () if one.model_id == model), None)
        self._open(model, self.place, None if row is None else core.start_run(row), show=True)
        self.refresh_page()

    def open_pin(self, pin: Pin) -> None:
        """Explore a pinned run, on its card."""
        if self.place.asked == pin.card or self.use_card(pin.card):
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

    def undo(self) -> None:
        """Back to the run before."""
        if self._undo:
            self._take(self._undo.pop())
        else:
            self.notify("nothing to undo")

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

    def _show_estimate(self, found: Any, fault: str | None) -> None:
        self.settled, self.fault = True, fault
        self.estimate = found
        self.refresh_page()

    def use_data(self, asked: DataAsked) -> None:
        """Count another dataset."""
        self.data_asked, self.data, self.data_fault, self.cut, self.data_view = asked, None, None, None, None
        self.data_done, self._viewed_of = None, None
        self.want_data()
        self.refresh_page()

    def name_data(self, path: str | None) -> None:
        """Count the dataset at a path, in the way that the one before was counted."""
        if path is not None:
            self.use_data(DataAsked(path=path) if self.data_asked is None else replace(self.data_asked, path=path))

    def ask_tokenizer(self) -> None:
        """Whose tokenizer counts the dataset."""
        if self.under_dialog or self.data_asked is None:
            return
        from qlora_planner.tui.screens.dialogs import TextScreen

        why = "" if self.data_fault is None else f"{self.data_fault}. "
        asks = "Whose tokenizer counts it? A folder with a tokenizer.json, a Hub id, or a guess: characters a token"
        self.push_screen(TextScreen(f"{why}{asks}", "", hint="./my-model, or 4"), self.name_tokenizer)

    def name_tokenizer(self, text: str | None) -> None:
        """Count the dataset with another tokenizer, or by so many characters a token."""
        if text is None or self.data_asked is None:
            return
        try:
            guess = float(text)
        except ValueError:
            self.use_data(replace(self.data_asked, tokenizer=text, chars_per_token=None))
            return
        if 0 < guess < 1000:
            self.use_data(replace(self.data_asked, tokenizer=None, chars_per_token=guess))
        else:
            self.notify(f"{text} is no number of characters that a token has, as 4", severity="error")

    def cut_at(self, tokens: int) -> None:
        """Move the slider."""
        self.cut = tokens
        self.refresh_page()

    def unpin(self, at: int) -> None:
        """Forget one pinned run."""
        del self.pins[at]
        if at < len(self.pinned):
            self.pinned = [*self.pinned[:at], *self.pinned[at + 1 :]]
        self.refresh_page()

    # ------------------------------------------------------------------ figures that a screen needs

    def want_surroundings(self) -> None:
        """Work out frontier and prices of the run now, once."""
        if self.subject is None or self._surrounding or self._around_of == (id(self.subject), repr(self.run_now)):
            return
        self._around_of = id(self.subject), repr(self.run_now)
        self._surrounding = True
        self._surround(self.subject, self.run_now)

    def want_pinned(self) -> None:
        """Work out the figures of pins, once for each set of them."""
        state = tuple(repr(pin) for pin in self.pins)
        if not self._pinning and self._pinned_of != state:
            self._pinned_of, self._pinning = state, True
            self._estimate_pins(tuple(self.pins))

    def want_sizes(self) -> None:
        """Survey every size of card, once."""
        if not self._widening and not self.by_card:
            self._widening = True
            self._survey_sizes(SIZES)

    def want_data(self) -> None:
        """Count the dataset, once; without a model and a tokenizer of its own there is nothing to count with yet."""
        asked = self.data_asked
        if asked is None or self.data is not None or self.data_fault is not None or self.data_done is not None:
            return
        if self.subject is not None or asked.tokenizer is not None or asked.chars_per_token is not None:
            self.data_done = 0, 0, 0
            self._count(asked, self.model)

    def want_view(self) -> None:
        """Work out what the dataset means for the run now where the slider stands, the last wish only."""
        if self.subject is None or self.data is None or self._viewing:
            return
        wanted = id(self.subject), repr(self.run_now), id(self.data), self.cut
        if wanted != self._viewed_of:
            self._viewed_of, self._viewing = wanted, True
            self._view(wanted, self.subject, self.run_now, self.data, self.cut)

    def want_readiness(self) -> None:
        """Look what a launch of this run would lack."""
        if self._looked_at != (self.run_now.trainer, self.run_now.liger, self.run_now.attention):
            self._looked_at = self.run_now.trainer, self.run_now.liger, self.run_now.attention
            self._look(self.run_now)
