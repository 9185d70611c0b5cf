"""What every screen has: a headline, the keys that matter, and a word where the terminal is too small."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.screen import Screen
from textual.widgets import Footer

from qlora_planner.errors import InputError
from qlora_planner.report.parts.theme import Theme
from qlora_planner.tui.control.figures import PREVIEW
from qlora_planner.tui.knobs import changed
from qlora_planner.tui.user_config import named
from qlora_planner.tui.widgets.outside import Pane
from qlora_planner.tui.widgets.run import preview_text
from qlora_planner.tui.widgets.system import card_text, fitted
from qlora_planner.tui.widgets.tabs import Tabs

if TYPE_CHECKING:
    from qlora_planner.tui.app import Explorer
    from qlora_planner.tui.state import ExplorerState

SMALLEST = (80, 24)
LOW = 32  # rows below which nothing is left empty between parts
PLACES = (
    ("fit", "Fit"), ("run", "Run"), ("frontier", "Frontier"), ("prices", "Prices"), ("compare", "Compare"),
    ("data", "Data"), ("train", "Train"),
)  # fmt: skip


def screen_of(key: str) -> Page:
    """The screen of a place, loaded when it is first gone to: `screens.KEY` has a class for it."""
    module = import_module(f"qlora_planner.tui.screens.{key}")
    page: Page = getattr(module, f"{key.capitalize()}Screen")()
    return page


class Page(Screen[None]):
    """One of the places; `place_key` is its key in `PLACES`, `SAYS` what its help begins with."""

    place_key = ""
    SAYS: ClassVar[str] = ""

    def __init_subclass__(cls, **more: Any) -> None:
        """Its actions get names, by which the user's own keys know them."""
        cls.BINDINGS = named(cls.BINDINGS, cls.place_key)
        super().__init_subclass__(**more)

    def __init__(self) -> None:
        super().__init__()
        self._put: dict[str, Text] = {}
        self._pointed: tuple[Mapping[str, Any] | None, str] = (None, "")

    @property
    def explorer(self) -> Explorer:
        """The app, typed."""
        return cast("Explorer", self.app)

    @property
    def state(self) -> ExplorerState:
        """What is explored, to be read."""
        return self.explorer.state

    def compose(self) -> ComposeResult:
        """The headline above, the screen's own body, the footer below."""
        yield Tabs(PLACES, self.place_key, id="headline")
        yield from self.body()
        yield Pane(id="about")
        yield Footer(show_command_palette=False, compact=True)
        yield Pane(id="small")

    def body(self) -> ComposeResult:
        """What the screen is about."""
        yield from ()

    def show(self) -> None:
        """Paint what the explorer knows now."""

    def repaint(self) -> None:
        """The headline and the body."""
        if not self.is_mounted:
            return
        self.put("#about", self._about())
        self.show()
        if self._pointed[0] is not None:
            self.preview(*self._pointed)

    def theme_at(self, width: int) -> Theme:
        """How reports write lines of this width."""
        return Theme(color=True, unicode=not self.explorer.plain, width=max(20, width))

    def on_mount(self) -> None:
        """Paint at once."""
        self._measure(self.size.width, self.size.height)
        self.repaint()

    def on_screen_resume(self) -> None:
        """What was changed elsewhere is shown."""
        self.repaint()

    def on_resize(self, event: events.Resize) -> None:
        """Lay out again, or say that it is too small."""
        self._measure(event.size.width, event.size.height)
        self.call_after_refresh(self.repaint)

    def on_tabs_clicked(self, event: Tabs.Clicked) -> None:
        """To another place."""
        self.explorer.go(event.place)

    def _measure(self, width: int, height: int) -> None:
        small = width < SMALLEST[0] or height < SMALLEST[1]
        self.set_class(small, "small")
        self.set_class(height < LOW, "low")
        if small:
            words = f"This terminal has {width} x {height} characters.\n"
            words += f"The explorer needs {SMALLEST[0]} x {SMALLEST[1]}.\nMake it larger, or press q to leave."
            self.query_one("#small", Pane).update(words)

    def preview(self, change: Mapping[str, Any] | None, words: str) -> None:
        """What the run would be with a change, under the table; None: nothing is pointed at. Only where there is room
        for it."""
        self._pointed = change, words
        if self.has_class("low"):
            return
        state = self.state
        try:
            state.pointed = None if change is None or state.subject is None else changed(state.run, change)
        except InputError:  # said where it is turned
            state.pointed = None
        self.explorer.tasks.want(PREVIEW)
        answer, theme = state.previewed, self.theme_at(self.size.width - 4)
        if state.pointed is None:
            self.put("#preview", Text(""))
        elif not answer.of(state.pointed_inputs()):
            return  # the run before stays in sight for the moment that it takes
        elif answer.value is None:
            self.put("#preview", Text(f"{words}: {answer.fault}", style="magenta"))
        else:
            self.put("#preview", preview_text(words, answer.value, theme))

    def put(self, selector: str, text: Text) -> None:
        """Change a pane's text; what stays as it is is not painted, and only another height lays the screen out."""
        pane, before = self.query_one(selector, Pane), self._put.get(selector)
        if before == text and before is not None and before.spans == text.spans:
            return
        self._put[selector] = text
        width = max(1, pane.content_size.width)
        pane.update(text, layout=before is None or not before.plain or _lines(before, width) != _lines(text, width))

    def _about(self) -> Text:
        """Card, model and what is worked on, in the last line above the footer."""
        explorer, text = self.explorer, Text()
        running = explorer.launches.running
        if running is not None and self.place_key != "train":
            text.append(f" {running.words}: 7 ", style="reverse")
        if explorer.tasks.busy_with:
            text.append(f" {explorer.tasks.busy_with}", style="bold italic yellow")
        width = self.size.width
        card = card_text(self.state.card, self.state.cards_here, self.theme_at(width))
        model = None if self.state.subject is None else self.state.subject.profile.id
        return fitted(card, model, text, width, bold=self.place_key != "fit")


def _lines(text: Text, width: int) -> int:
    """About how many lines a text takes; equal for equal heights as long as words are short."""
    return sum(-(-max(1, len(line)) // width) for line in text.plain.split("\n"))
