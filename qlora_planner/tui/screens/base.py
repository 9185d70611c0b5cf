"""What every screen has: a headline, the keys that matter, and a word where the terminal is too small."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.screen import Screen
from textual.widgets import Footer, Static

from qlora_planner.report.theme import Theme

if TYPE_CHECKING:
    from qlora_planner.tui.app import Explorer

SMALLEST = (80, 24)
PLACES = (("fit", "Fit"), ("run", "Run"), ("frontier", "Frontier"), ("prices", "Prices"), ("compare", "Compare"))


class Page(Screen[None]):
    """One of the five places; `name_of_place` is its key in `PLACES`."""

    place_key = ""

    def __init__(self) -> None:
        super().__init__()
        self._put: dict[str, Text] = {}

    @property
    def explorer(self) -> Explorer:
        """The app, typed."""
        return cast("Explorer", self.app)

    def compose(self) -> ComposeResult:
        """The headline above, the screen's own body, the footer below."""
        yield Static(id="headline")
        yield from self.body()
        yield Footer(show_command_palette=False)
        yield Static(id="small")

    def body(self) -> ComposeResult:
        """What the screen is about."""
        yield from ()

    def show(self) -> None:
        """Paint what the explorer knows now."""

    def repaint(self) -> None:
        """The headline and the body."""
        if not self.is_mounted or self.explorer.place is None:
            return
        self.put("#headline", self._headline())
        self.show()

    def theme_at(self, width: int) -> Theme:
        """How reports write lines of this width."""
        return Theme(color=True, unicode=True, width=max(20, width))

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

    def _measure(self, width: int, height: int) -> None:
        small = width < SMALLEST[0] or height < SMALLEST[1]
        self.set_class(small, "small")
        if small:
            words = f"This terminal has {width} x {height} characters.\n"
            words += f"The explorer needs {SMALLEST[0]} x {SMALLEST[1]}.\nMake it larger, or press q to leave."
            self.query_one("#small", Static).update(words)

    def put(self, selector: str, text: Text) -> None:
        """Change a pane's text; what stays as it is is not painted, and only another height lays the screen out."""
        pane, before = self.query_one(selector, Static), self._put.get(selector)
        if before == text and before is not None and before.spans == text.spans:
            return
        self._put[selector] = text
        lines = -1 if before is None else before.plain.count("\n")
        pane.update(text, layout=lines != text.plain.count("\n") or before is None or not before.plain)

    def _headline(self) -> Text:
        explorer = self.explorer
        text = Text(no_wrap=True, overflow="ellipsis")
        for number, (key, label) in enumerate(PLACES, 1):
            text.append(f" {number} {label} ", style="reverse bold" if key == self.place_key else "dim")
        if explorer.place is not None:
            text.append(f"  {explorer.place.gpu.label}", style="bold")
        if explorer.subject is not None and self.place_key != "fit":
            text.append(f"  {explorer.subject.profile.id}")
        if explorer.busy_with:
            text.append(f"  {explorer.busy_with}", style="italic")
        return text
