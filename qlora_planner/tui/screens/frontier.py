"""Frontier: sequence by batch around the run; choose a cell to go there."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import DataTable

from qlora_planner.planner.knobs import at_batch
from qlora_planner.report.parts.labels import gib
from qlora_planner.report.parts.theme import VERDICT_WORDS, verdict_style
from qlora_planner.tui.control.figures import SURROUNDINGS
from qlora_planner.tui.screens.base import Page
from qlora_planner.tui.widgets.outside import Pane
from qlora_planner.tui.widgets.tables import Table


class FrontierScreen(Page):
    """The grid."""

    place_key = "frontier"
    SAYS = (
        "GiB that the run needs at every batch and sequence, by colour and sign, and the longest sequence of each batch"
        " that fits. The run now is marked. Enter, or a click, goes to a cell."
    )
    AUTO_FOCUS = "#grid"

    def __init__(self) -> None:
        super().__init__()
        self._painted: object = None
        self._lengths: tuple[int, ...] = ()
        self._batches: tuple[int, ...] = ()

    def body(self) -> ComposeResult:
        """A note, the grid."""
        yield Pane(id="note")
        yield Table(id="grid", cells=True)
        yield Pane(id="detail")
        yield Pane(id="preview")

    def show(self) -> None:
        """The grid of the run now, as far as it is worked out."""
        explorer = self.explorer
        explorer.tasks.want(SURROUNDINGS)
        grid, note = self.state.frontier, self.query_one("#note", Pane)
        if grid is None:
            note.update(self.state.around_words())
            return
        note.update(
            "GiB needed by batch size and sequence length, and the longest sequence of each batch that fits; far from"
            " the limit a quick estimate. Enter takes a cell."
        )
        if grid is self._painted:
            return
        self._painted = grid
        self._lengths, self._batches = grid.lengths, tuple(grid.longest)
        theme, table = self.theme_at(80), self.query_one("#grid", Table)
        names = ("batch", "longest", *(f"{length:,}" for length in self._lengths))
        heads = [Text(name, justify="right") for name in names]
        rows: list[list[Text]] = []
        for batch in self._batches:
            longest = grid.longest[batch]
            row = [Text(f"{batch}", style="bold", justify="right")]
            row.append(Text("-" if longest is None else f"{longest:,}", style="bold cyan", justify="right"))
            for length in self._lengths:
                if (batch, length) not in grid.cells:
                    row.append(Text("-", style="dim", justify="right"))
                    continue
                verdict, floor = grid.cells[batch, length]
                here = (batch, length) == (self.state.run.batch_size, self.state.run.seq_len)
                style = f"{verdict_style(verdict)}{' reverse' if here else ''}"
                row.append(Text(f"{theme.glyph(verdict)} {gib(floor, 1)}", style=style, justify="right"))
            rows.append(row)
        table.fill(heads, rows)
        if self.state.run.batch_size in self._batches:
            lengths = [index for index, size in enumerate(self._lengths) if size <= self.state.run.seq_len]
            table.move_cursor(
                row=self._batches.index(self.state.run.batch_size), column=2 + (lengths[-1] if lengths else 0)
            )

    def on_data_table_cell_highlighted(self, event: DataTable.CellHighlighted) -> None:
        """What a cell costs."""
        grid, (row, column) = self.state.frontier, event.coordinate
        if grid is None or column < 2 or row >= len(self._batches):
            self.query_one("#detail", Pane).update("")
            self.preview(None, "")
            return
        batch, length = self._batches[row], self._lengths[column - 2]
        self.preview({"batch_size": batch, "seq_len": length}, f"Enter takes {batch} x {length:,} tokens")
        if (batch, length) in grid.cells:
            verdict, floor = grid.cells[batch, length]
            left = grid.usable_bytes - floor
            spare = f"{gib(left)} GiB to spare" if left >= 0 else f"{gib(-left)} GiB short"
            text = Text(f"{batch} x {length:,} tokens needs {gib(floor)} of {gib(grid.usable_bytes)} GiB: ")
            text.append(f"{VERDICT_WORDS[verdict]}, {spare}", style=f"bold {verdict_style(verdict)}")
            self.query_one("#detail", Pane).update(text)

    def on_data_table_cell_selected(self, event: DataTable.CellSelected) -> None:
        """Go to the run of a cell; the second column is the longest of its batch."""
        grid = self.state.frontier
        row, column = event.coordinate
        if grid is None or column == 0 or row >= len(self._batches):
            return
        batch = self._batches[row]
        length = grid.longest[batch] if column == 1 else self._lengths[column - 2]
        if length is not None:
            self.explorer.controller.change({**at_batch(self.state.run, batch), "seq_len": length})
            self.explorer.go("run")
