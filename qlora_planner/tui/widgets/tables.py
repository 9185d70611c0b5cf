"""Tables whose column widths are worked out before they are painted.

Left to itself a DataTable measures its cells when it finds time. On a busy machine a paint comes first, and columns
then keep the widths of their heads and cut what is below them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import DataTable
from textual.widgets.data_table import RowKey

from qlora_planner.tui.widgets.outside import clean


class Table(DataTable[Text]):
    """A table that measures nothing: it is given its columns with their widths, or its rows all at once."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "Down", show=False),
        Binding("k", "cursor_up", "Up", show=False),
        Binding("home", "edge(-1)", "First", show=False),
        Binding("end", "edge(1)", "Last", show=False),
    ]

    def __init__(self, *, id: str, cells: bool = False) -> None:
        super().__init__(id=id, cursor_type="cell" if cells else "row", zebra_stripes=not cells)
        self._laid: object = None

    def action_edge(self, to: int) -> None:
        """The first or the last row; among cells, of the row."""
        if self.cursor_type == "row":
            self.move_cursor(row=0 if to < 0 else max(0, self.row_count - 1))
        elif to < 0:
            self.action_scroll_home()
        else:
            self.action_scroll_end()

    def lay(self, heads: Sequence[Text], widths: Sequence[int]) -> None:
        """Empty, under these heads. Columns that stay as they are keep where the table was scrolled to."""
        laid = [head.plain for head in heads], tuple(widths)
        if laid == self._laid:
            self.clear()
            return
        self._laid = laid
        self.clear(columns=True)
        for head, width in zip(heads, widths, strict=True):
            self.add_column(head, width=width)

    def fill(self, heads: Sequence[str | Text], rows: Sequence[Sequence[Text]]) -> None:
        """These rows alone, every column as wide as its widest cell."""
        rows = [[clean(cell) for cell in row] for row in rows]
        titles = [Text(head) if isinstance(head, str) else head for head in heads]
        self.lay(titles, [max(line[at].cell_len for line in (titles, *rows)) for at in range(len(titles))])
        for row in rows:
            super().add_row(*row)

    def add_row(self, *cells: Text, **more: Any) -> RowKey:
        """One more row."""
        return super().add_row(*map(clean, cells), **more)
