"""Prices: what turning one knob would cost or free; Enter turns it."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import DataTable

from qlora_planner.planner.records import Price
from qlora_planner.report.parts.labels import change
from qlora_planner.tui.control.figures import SURROUNDINGS
from qlora_planner.tui.screens.base import Page
from qlora_planner.tui.widgets.outside import Pane
from qlora_planner.tui.widgets.tables import Table
from qlora_planner.units import format_size

_FITS = {True: "fits", False: "does not fit", None: "cannot say"}


def price_cells(price: Price) -> tuple[str, str, str, str]:
    """One price as text: the change, its bytes, its speed, whether it fits or why it is refused."""
    if price.refused is not None:
        return change(price.change), "-", "-", f"will not run: {price.refused}"
    speed = "-" if price.speed is None else f"x {price.speed:.2f}"
    if price.bytes is None:
        return change(price.change), "-", speed, "unknown: Enter says"
    return (
        change(price.change), f"{'+' if price.bytes > 0 else ''}{format_size(price.bytes)}",
        speed, _FITS[price.fits],
    )  # fmt: skip


class PricesScreen(Page):
    """A row per knob."""

    place_key = "prices"
    SAYS = "What turning one knob of the run would cost or free, and what it does to the speed. Enter applies it."
    AUTO_FOCUS = "#prices"

    def __init__(self) -> None:
        super().__init__()
        self._painted: object = None
        self._rows: list[Price] = []

    def body(self) -> ComposeResult:
        """A note, the table, what is under the cursor."""
        yield Pane(id="note")
        yield Table(id="prices")
        yield Pane(id="detail")
        yield Pane(id="preview")

    def show(self) -> None:
        """The prices of the run now, as far as they are worked out."""
        explorer = self.explorer
        explorer.tasks.want(SURROUNDINGS)
        note = self.query_one("#note", Pane)
        if self.state.prices is None:
            note.update(self.state.around_words())
            return
        note.update("One knob at a time, against the run now. Enter applies a change.")
        if self.state.prices is self._painted:
            return
        self._painted = self._rows = self.state.prices
        theme, rows = self.theme_at(80), []
        for price in self._rows:
            words, size, speed, then = price_cells(price)
            unsaid = price.bytes is None or price.fits is None
            style = "magenta" if price.refused else "dim" if unsaid else "green" if price.fits else "red"
            rows.append([
                Text(theme.cut(words, 46)), Text(size, justify="right"), Text(speed, justify="right"),
                Text(theme.cut(then, 40), style=style),
            ])  # fmt: skip
        self.query_one("#prices", Table).fill(("change", "memory", "speed", "then"), rows)

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """The whole text of a line."""
        if 0 <= event.cursor_row < len(self._rows):
            price = self._rows[event.cursor_row]
            parts = [change(price.change), price.refused or "", price.note or ""]
            self.query_one("#detail", Pane).update(Text("; ".join(word for word in parts if word)))
            self.preview(price.change, f"Enter takes {change(price.change)}")

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Turn the knob."""
        if 0 <= event.cursor_row < len(self._rows):
            self.explorer.controller.change(self._rows[event.cursor_row].change)
            self.explorer.go("run")
