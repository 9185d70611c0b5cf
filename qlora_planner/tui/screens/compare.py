"""Compare: the runs that were pinned, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable

from qlora_planner.report.parts.labels import change, gib, segments
from qlora_planner.report.parts.theme import Line, Theme, verdict_style
from qlora_planner.spec.run import RunConfig
from qlora_planner.tui.command_line import typed_options
from qlora_planner.tui.control.figures import PINNED
from qlora_planner.tui.saved_state import Pin
from qlora_planner.tui.screens.base import Page
from qlora_planner.tui.widgets.outside import Pane
from qlora_planner.tui.widgets.run import as_text
from qlora_planner.tui.widgets.tables import Table

if TYPE_CHECKING:
    from qlora_planner.memory import MemoryEstimate

_SAYS = "Pinned runs, the best of those that fit marked; Enter opens one, x unpins it."
_NOTHING = (
    "Nothing is pinned yet: p in Run (2) pins the run there; change a knob, the card or the model, and pin again."
)
_HEADS = ("", "model", "card", "peak GiB", "spare", "tokens/s", "options")


class CompareScreen(Page):
    """A row per pinned run."""

    place_key = "compare"
    SAYS = "Runs that were pinned with p, each on its card, side by side."
    AUTO_FOCUS = "#pins"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x,delete", "unpin", "Unpin", tooltip="Forget the run under the cursor")
    ]

    def body(self) -> ComposeResult:
        """A note, the table."""
        yield Pane(id="note")
        yield Table(id="pins")
        yield Pane(id="preview")

    def show(self) -> None:
        """Every pin with its figures, where they are worked out."""
        explorer = self.explorer
        pins, estimates = self.state.pins, self.state.pinned.value or []
        note = self.query_one("#note", Pane)
        note.update(_SAYS if pins else _NOTHING)
        table, theme = self.query_one("#pins", Table), self.theme_at(80)
        at, rows = table.cursor_row, []
        best, mark = _best(estimates), theme.sign("★", "*")

        def figure(index: int, name: str, text: str) -> Text:
            won = index in best[name]
            return Text(f"{mark}{text}" if won else text, style="bold green" if won else "", justify="right")

        for index, pin in enumerate(pins):
            estimate = estimates[index] if index < len(estimates) else None
            verdict = None if estimate is None else estimate.verdict
            speed = None if estimate is None else estimate.speed.tokens_per_s
            fit = None if estimate is None else estimate.fit
            rows.append([
                Text(theme.glyph(verdict) if estimate else theme.ellipsis, style=verdict_style(verdict)),
                Text(theme.cut(pin.model.rpartition("/")[2], 24)), Text(pin.card),
                figure(index, "peak", "-" if estimate is None else gib(estimate.peak.device_bytes)),
                figure(index, "spare", "-" if fit is None else gib(fit.headroom_bytes)),
                figure(index, "speed", "-" if speed is None else f"{speed:,.0f}"),
                Text(change(typed_options(RunConfig(**dict(pin.run)))) or "defaults"),
            ])  # fmt: skip
        table.fill(_HEADS, rows)
        if pins:
            table.move_cursor(row=min(max(0, at), len(pins) - 1))
        if not self.has_class("low"):
            self.put("#preview", _bars(pins, estimates, self.theme_at(self.size.width - 4)))
        explorer.tasks.want(PINNED)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open a pinned run."""
        if 0 <= event.cursor_row < len(self.state.pins):
            self.explorer.controller.open_pin(self.state.pins[event.cursor_row])

    def current(self) -> Pin | None:
        """The run under the cursor."""
        at = self.query_one("#pins", Table).cursor_row
        return self.state.pins[at] if 0 <= at < len(self.state.pins) else None

    def action_unpin(self) -> None:
        """Forget the pin under the cursor."""
        at = self.query_one("#pins", Table).cursor_row
        if 0 <= at < len(self.state.pins):
            self.explorer.controller.unpin(at)


def _bars(pins: Sequence[Pin], estimates: Sequence[MemoryEstimate | None], theme: Theme) -> Text:
    """The memory of every pin against what its card lets a process use, all at one scale."""
    known = [
        (pin, each, each.fit.usable_bytes) for pin, each in zip(pins, estimates, strict=False) if each and each.fit
    ]
    if not known:
        return Text("")
    most = max(max(usable, each.peak.device_bytes) for _, each, usable in known)
    lines: list[Line] = [[("Peak against what the card lets a process use, at one scale", "bold")]]
    for pin, each, usable in known:
        name = f"{theme.glyph(each.verdict)} {pin.model.rpartition('/')[2]} on {pin.card}: "
        figures = f"{gib(each.peak.device_bytes)} of {gib(usable)} GiB"
        width = max(1, round(theme.width * max(usable, each.peak.device_bytes) / most))
        lines += [[], [(name, verdict_style(each.verdict)), (figures, "")]]
        lines.append(theme.bar(segments(each.components), usable, width))
    return as_text(lines)


def _best(estimates: Sequence[MemoryEstimate | None]) -> dict[str, set[int]]:
    """Which of several runs that fit has the least peak, most to spare, most tokens a second."""
    runs = {at: each for at, each in enumerate(estimates) if each is not None and each.verdict in ("fits", "tight")}
    figures: dict[str, dict[int, float | None]] = {
        "peak": {at: -each.peak.device_bytes for at, each in runs.items()},
        "spare": {at: None if each.fit is None else each.fit.headroom_bytes for at, each in runs.items()},
        "speed": {at: each.speed.tokens_per_s for at, each in runs.items()},
    }
    best: dict[str, set[int]] = {}
    for name, values in figures.items():
        there = {at: value for at, value in values.items() if value is not None}
        top = max(there.values(), default=None)
        best[name] = {at for at, value in there.items() if value == top} if len(set(there.values())) > 1 else set()
    return best
