"""The list of knobs, turned by keys or by a click on its arrows, and the lines of a breakdown with a cursor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from qlora_planner.run import RunConfig
from qlora_planner.tui.knobs import KNOBS

_LABEL, _BREAKDOWN_WIDTH = 14, 52


class KnobList(Widget, can_focus=True):
    """Every knob with its value; says what was asked of it and changes nothing itself."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Knob", show=False),
        Binding("down,j", "move(1)", "Knob", show=False),
        Binding("right,l,plus", "turn(1)", "More"),
        Binding("left,h,minus", "turn(-1)", "Less"),
    ]
    at: reactive[int] = reactive(0)
    run: reactive[RunConfig | None] = reactive(None)

    @dataclass
    class Turned(Message):
        """A knob is to go one place on or back."""

        index: int
        by: int

    @dataclass
    class Reached(Message):
        """Another knob is the current one."""

        index: int

    def render(self) -> Text:
        """One line per knob."""
        if self.run is None:
            return Text("no model yet: choose one in Fit (1)", style="dim")
        lines = []
        room = max(4, self.size.width - _LABEL - 4)
        for index, knob in enumerate(KNOBS):
            here = index == self.at
            value = knob.show(self.run)
            value = value if len(value) <= room else value[: room - 1] + "…"
            text = Text(f"{knob.label:<{_LABEL}}", style="bold" if here else "")
            text.append("◀ " if here else "  ", style="dim")
            text.append(f"{value:<{room}}", style="bold" if here else "")
            text.append(" ▶" if here else "  ", style="dim")
            if here and self.has_focus:
                text.stylize("reverse")
            lines.append(text)
        return Text("\n").join(lines)

    def action_move(self, by: int) -> None:
        """Another knob."""
        self.at = (self.at + by) % len(KNOBS)
        self.post_message(self.Reached(self.at))

    def action_turn(self, by: int) -> None:
        """The current knob's next value."""
        self.post_message(self.Turned(self.at, by))

    def on_click(self, event: events.Click) -> None:
        """A click chooses a line; on its arrows it turns the knob."""
        if not 0 <= event.y < len(KNOBS):
            return
        already = event.y == self.at
        self.at = event.y
        self.post_message(self.Reached(self.at))
        if event.x >= self.size.width - 3:
            self.post_message(self.Turned(self.at, 1))
        elif already and _LABEL <= event.x <= _LABEL + 2:
            self.post_message(self.Turned(self.at, -1))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """The wheel moves through the knobs."""
        self.action_move(-1)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """The wheel moves through the knobs."""
        self.action_move(1)


class Breakdown(Widget, can_focus=True):
    """Component, MiB, share and basis, a line each; says which line is the current one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Line", show=False),
        Binding("down,j", "move(1)", "Why", key_display="↑↓"),
        Binding("home", "move(-99)", "First", show=False),
        Binding("end", "move(99)", "Last", show=False),
    ]
    at: reactive[int] = reactive(0)
    rows: reactive[tuple[tuple[str, str, str, str, str], ...]] = reactive(())

    @dataclass
    class Reached(Message):
        """Another line is the current one."""

        index: int

    def render(self) -> Text:
        """One line per row."""
        lines = []
        wide = self.size.width >= _BREAKDOWN_WIDTH
        room = 23 if wide else max(12, self.size.width - 17)
        for index, (label, size, share, basis, color) in enumerate(self.rows):
            text = Text("█ " if color else "  ", style=color)
            text.append(f"{label[:room]:<{room}}{size:>9}{share:>6}  ", style="not dim default" if color else "bold")
            if wide:
                text.append(f"{basis:<10}", style="dim default")
            if index == self.at:
                text.stylize("reverse" if self.has_focus else "underline", 2)
            lines.append(text)
        return Text("\n").join(lines)

    def action_move(self, by: int) -> None:
        """Another line."""
        self.at = min(max(0, self.at + by), max(0, len(self.rows) - 1))
        self.post_message(self.Reached(self.at))

    def on_click(self, event: events.Click) -> None:
        """The line that was clicked."""
        if 0 <= event.y < len(self.rows):
            self.at = event.y
            self.post_message(self.Reached(self.at))
