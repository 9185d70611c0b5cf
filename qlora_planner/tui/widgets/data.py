"""A histogram of lengths and the slider that cuts them; both draw what they are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from qlora_planner.report.parts.labels import binary_count

_EIGHTHS, _PLAIN = " ▁▂▃▄▅▆▇█", "  ..--==#"
_WIDEST_BIN = 9


class Histogram(Widget):
    """Rows by length: a bar for each bin, its left edge below; bins that the cut reaches are red.

    `bins` are (left edge in tokens, rows).
    """

    bins: reactive[tuple[tuple[int, int], ...]] = reactive(())
    cut: reactive[int] = reactive(0)
    plain: reactive[bool] = reactive(False)

    def render(self) -> Text:
        """The bars from the top line down, then counts and edges."""
        if not self.bins:
            return Text("")
        width = max(5, min(_WIDEST_BIN, self.size.width // len(self.bins)))
        shown = self.bins[-max(1, self.size.width // width) :]
        rows, most = max(1, self.size.height - 2), max(count for _, count in shown)
        scale = _PLAIN if self.plain else _EIGHTHS
        text = Text(no_wrap=True)
        for row in range(rows - 1, -1, -1):
            for edge, count in shown:
                # What is not empty is seen.
                eighths = max(1, round(8 * rows * count / most)) if count else 0
                level = scale[min(8, max(0, eighths - 8 * row))]
                text.append(level * (width - 1) + " ", style="red" if edge >= self.cut > 0 else "cyan")
            text.append("\n")
        for _, count in shown:
            text.append(f"{count:,}"[: width - 1].ljust(width), style="dim")
        text.append("\n")
        for edge, _ in shown:
            text.append(binary_count(edge).ljust(width), style="bold")
        return text


class Slider(Widget, can_focus=True):
    """A length among `stops`; says where it was moved to and changes nothing itself."""

    NAME = "the slider"
    SAYS = "The sequence length: what is longer is cut. The figures below follow; a takes it for the run."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "right,l,up,k",
            "move(1)",
            "Cut",
            key_display="←→",
            tooltip="One stop longer; or click the track",
        ),
        Binding("left,h,down,j", "move(-1)", "Shorter", show=False, tooltip="One stop shorter"),
        Binding("pagedown", "move(8)", "Far", show=False, tooltip="Eight stops longer"),
        Binding("pageup", "move(-8)", "Far", show=False, tooltip="Eight stops shorter"),
        Binding("home", "move(-9999)", "Shortest", show=False, tooltip="The shortest"),
        Binding("end", "move(9999)", "Longest", show=False, tooltip="The longest row: nothing is cut"),
    ]
    stops: reactive[tuple[int, ...]] = reactive(())
    at: reactive[int] = reactive(0)  # tokens
    plain: reactive[bool] = reactive(False)

    @dataclass
    class Moved(Message):
        """The slider is to stand at so many tokens."""

        tokens: int

    @property
    def _track(self) -> int:
        return max(8, self.size.width - 20)

    def render(self) -> Text:
        """The track with its mark, and the length."""
        if not self.stops:
            return Text("")
        line, mark = ("-", "O") if self.plain else ("━", "●")
        cells = round(self._index(self.at) * (self._track - 1) / max(1, len(self.stops) - 1))
        text = Text(no_wrap=True)
        text.append(line * cells, style="cyan")
        text.append(mark, style="bold reverse" if self.has_focus else "bold")
        text.append(line * (self._track - 1 - cells), style="dim red")
        return text.append(f"  {self.at:,} tokens", style="bold")

    def _index(self, tokens: int) -> int:
        return min(range(len(self.stops)), key=lambda index: abs(self.stops[index] - tokens))

    def action_move(self, by: int) -> None:
        """So many stops on or back."""
        if self.stops:
            index = self._index(self.at)
            # From between two stops the first move goes to the neighbour in its direction.
            if abs(by) == 1 and self.stops[index] != self.at:
                index -= (self.stops[index] > self.at) if by > 0 else -(self.stops[index] < self.at)
            self.post_message(self.Moved(self.stops[min(max(0, index + by), len(self.stops) - 1)]))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """To where the track was clicked; the mouse is followed until its button is let go."""
        self.capture_mouse()
        self._to(event.x)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Dragged."""
        if self.app.mouse_captured is self:
            self._to(event.x)

    def on_mouse_up(self, event: events.MouseUp) -> None:
        """Let go."""
        self.release_mouse()

    def _to(self, column: int) -> None:
        if self.stops and 0 <= column < self._track:
            index = round(column * (len(self.stops) - 1) / max(1, self._track - 1))
            self.post_message(self.Moved(self.stops[index]))


def bins_of(edges: Sequence[int], counts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """A histogram's edges and counts as `Histogram.bins`."""
    return tuple(zip(edges, counts, strict=False))
