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

from qlora_planner.spec.run import RunConfig
from qlora_planner.tui.knobs import Knob, knobs_of

_LABEL, _BREAKDOWN_WIDTH = 14, 52


class KnobList(Widget, can_focus=True):
    """Every knob with its value, as many as there is room for; says what was asked of it and changes nothing itself."""

    NAME = "the knobs"
    SAYS = "Each is one option of the run; the figures on the right follow at once. The text below says what it is."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Knob", show=False, tooltip="The knob above"),
        Binding("down,j", "move(1)", "Knob", show=False, tooltip="The knob below"),
        Binding(
            "right,l,plus",
            "turn(1)",
            "Turn",
            key_display="←→",
            tooltip="The next value; a click on the right arrow does the same",
        ),
        Binding("left,h,minus", "turn(-1)", "Less", show=False, tooltip="The value before; a click on the left arrow"),
        Binding("enter,equals_sign", "type", "Type", tooltip="Type an exact value, where the knob takes one"),
        Binding("home", "move(-99)", "First", show=False, tooltip="The first knob"),
        Binding("end", "move(99)", "Last", show=False, tooltip="The last knob"),
    ]
    at: reactive[int] = reactive(0)
    run: reactive[RunConfig | None] = reactive(None)
    plain: reactive[bool] = reactive(False)
    reads_images: reactive[bool] = reactive(False)

    @dataclass
    class Turned(Message):
        """A knob is to go one place on or back."""

        index: int
        by: int

    @dataclass
    class Reached(Message):
        """Another knob is the current one."""

        index: int

    @dataclass
    class Typed(Message):
        """An exact value is to be typed for a knob."""

        index: int

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """Those of the run, in their order."""
        return knobs_of(self.run, reads_images=self.reads_images)

    def watch_run(self) -> None:
        """Another trainer may have fewer knobs."""
        self.at = min(self.at, len(self.knobs) - 1)

    @property
    def first(self) -> int:
        """The knob in the first line."""
        rows = max(1, self.size.height)
        return min(max(0, self.at - rows + 2), max(0, len(self.knobs) - rows))

    def render(self) -> Text:
        """One line per knob, those around the current one where not all have room."""
        if self.run is None:
            return Text("no model yet: choose one in Fit (1)", style="dim")
        less, more, dots = ("<", ">", "..") if self.plain else ("◀", "▶", "…")
        lines = []
        room = max(4, self.size.width - _LABEL - 4)
        knobs = self.knobs
        first, last = self.first, min(len(knobs), self.first + max(1, self.size.height))
        for index, knob in enumerate(knobs[first:last], first):
            here = index == self.at
            value = knob.show(self.run)
            value = value if len(value) <= room else value[: room - len(dots)] + dots
            hidden = (index == first and first > 0) or (index == last - 1 and last < len(knobs))
            text = Text(f"{knob.label:<{_LABEL}}", style="bold" if here else "")
            text.append(f"{less} " if here else "  ", style="dim")
            text.append(f"{value:<{room}}", style="bold" if here else "")
            text.append(f" {more}" if here else f" {dots[0]}" if hidden else "  ", style="dim")
            if here and self.has_focus:
                text.stylize("reverse")
            lines.append(text)
        return Text("\n").join(lines)

    def action_move(self, by: int) -> None:
        """Another knob; from the last on to the first."""
        self.at = (self.at + by) % len(self.knobs) if abs(by) == 1 else 0 if by < 0 else len(self.knobs) - 1
        self.post_message(self.Reached(self.at))

    def action_turn(self, by: int) -> None:
        """The current knob's next value."""
        self.post_message(self.Turned(self.at, by))

    def action_type(self) -> None:
        """The current knob's value from the keyboard."""
        self.post_message(self.Typed(self.at))

    def on_click(self, event: events.Click) -> None:
        """A click chooses a line; on its arrows it turns the knob, twice on the line it asks for a value."""
        index = self.first + event.y
        if not 0 <= index < len(self.knobs):
            return
        already = index == self.at
        self.at = index
        self.post_message(self.Reached(index))
        if event.x >= self.size.width - 3:
            self.post_message(self.Turned(index, 1))
        elif already and _LABEL <= event.x <= _LABEL + 2:
            self.post_message(self.Turned(index, -1))
        elif event.chain == 2:
            self.post_message(self.Typed(index))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """The wheel moves through the knobs."""
        self.action_move(-1)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """The wheel moves through the knobs."""
        self.action_move(1)


class Breakdown(Widget, can_focus=True):
    """Component, MiB, share and basis, a line each; says which line is the current one."""

    NAME = "the breakdown"
    SAYS = "What the memory of the peak is for. The text below says why the line under the cursor has its size."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Line", show=False, tooltip="The line above"),
        Binding("down,j", "move(1)", "Why", key_display="up/dn", tooltip="The line below, and why it has its size"),
        Binding("home", "move(-99)", "First", show=False, tooltip="The first line"),
        Binding("end", "move(99)", "Last", show=False, tooltip="The last line: the peak"),
    ]
    at: reactive[int] = reactive(0)
    rows: reactive[tuple[tuple[str, str, str, str, str], ...]] = reactive(())
    plain: reactive[bool] = reactive(False)

    @dataclass
    class Reached(Message):
        """Another line is the current one."""

        index: int

    def render(self) -> Text:
        """One line per row."""
        lines = []
        wide = self.size.width >= _BREAKDOWN_WIDTH
        room = 23 if wide else max(12, self.size.width - 17)
        block = "# " if self.plain else "█ "
        for index, (label, size, share, basis, color) in enumerate(self.rows):
            text = Text(block if color else "  ", style=color)
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
