"""Fit: what fits on the card, over the whole catalogue."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Input, Static

from qlora_planner.report.theme import VERDICT_WORDS, verdict_style
from qlora_planner.tui.listing import GROUPS, HEADS, SORTS, cells, chosen, tally
from qlora_planner.tui.screens.base import Page


class FitScreen(Page):
    """The table of models."""

    place_key = "fit"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Filter", key_display="/"),
        Binding("s", "sort", "Sort"),
        Binding("f", "group", "Group"),
        Binding("escape", "clear", "Clear", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str | None] = []  # model id by table row; None: a heading
        self._painted: tuple[object, ...] = ()

    def body(self) -> ComposeResult:
        """Filter, tally, table."""
        yield Input(placeholder="filter: words of a name, a family, a verdict", id="filter")
        yield Static(id="tally")
        table: DataTable[Text] = DataTable(id="models", cursor_type="row", zebra_stripes=True)
        yield table

    def on_mount(self) -> None:
        """The keys go to the table."""
        table = self.table
        for head in HEADS:
            table.add_column(head, key=head or "mark")
        table.focus()

    @property
    def table(self) -> DataTable[Text]:
        """The models."""
        return self.query_one("#models", DataTable)

    def show(self) -> None:
        """Every row that the filter leaves."""
        explorer = self.explorer
        rows = explorer.rows
        self.query_one("#tally", Static).update(self._tally())
        text = self.query_one("#filter", Input).value
        state = id(rows), text, explorer.sort, explorer.group, self.size.width
        if state == self._painted:
            return
        self._painted = state
        table, here = self.table, self.current()
        table.clear()
        self.shown = []
        theme = self.theme_at(self.size.width)
        room = max(20, self.size.width - 2 - 8 - 10 - 24 - 10 - 13)
        last = None
        for heading, row in chosen(rows or [], text, explorer.sort, explorer.group):
            if heading and heading != last:
                last = heading
                self.shown.append(None)
                table.add_row(Text(""), Text(heading, style="bold underline"), *[Text("")] * 4)
            mark, name, size, longest, best, speed = cells(row, theme.glyph(row.verdict))
            style = verdict_style(row.verdict)
            short = name if len(name) <= room else theme.cut(name.rpartition("/")[2], room)
            self.shown.append(row.model_id)
            table.add_row(
                Text(mark, style=f"bold {style}"), Text(short), Text(size, justify="right"),
                Text(longest, justify="right"), Text(theme.cut(best, 24)), Text(speed, justify="right"),
            )  # fmt: skip
        if here in self.shown:
            table.move_cursor(row=self.shown.index(here))

    def current(self) -> str | None:
        """The model under the cursor."""
        at = self.table.cursor_row
        return self.shown[at] if 0 <= at < len(self.shown) else None

    def _tally(self) -> Text:
        explorer = self.explorer
        text = Text(no_wrap=True, overflow="ellipsis")
        if explorer.rows is None:
            text.append("looking at every model of the catalogue …", style="italic")
        else:
            theme = self.theme_at(80)
            for verdict, number in tally(explorer.rows).items():
                if number:
                    text.append(f"{theme.glyph(verdict)} {number} ", style=f"bold {verdict_style(verdict)}")
                    text.append(f"{VERDICT_WORDS[verdict]}  ")
            if not explorer.surveyed:
                text.append("so far …  ", style="italic")
            text.append(f"sort {explorer.sort}", style="dim")
            if explorer.group != "none":
                text.append(f", by {explorer.group}", style="dim")
        if explorer.place is not None and explorer.place.note:
            text.append(f"  {explorer.place.note}", style="yellow")
        return text

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter as one types."""
        self.repaint()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Back to the table."""
        self.set_focus(self.table)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open the model."""
        model = self.current()
        if model is not None:
            self.explorer.open_model(model)

    def action_search(self) -> None:
        """Type a filter."""
        # At once: Widget.focus waits for its turn, and what is typed meanwhile would be taken for keys.
        self.set_focus(self.query_one("#filter", Input))

    def action_clear(self) -> None:
        """From the filter back to the table; there, clear the filter."""
        if self.table.has_focus:
            self.query_one("#filter", Input).value = ""
        self.set_focus(self.table)

    def action_sort(self) -> None:
        """The next order."""
        names = list(SORTS)
        at = names.index(self.explorer.sort) if self.explorer.sort in names else -1
        self.explorer.sort = names[(at + 1) % len(names)]
        self.repaint()

    def action_group(self) -> None:
        """The next grouping."""
        at = GROUPS.index(self.explorer.group) if self.explorer.group in GROUPS else -1
        self.explorer.group = GROUPS[(at + 1) % len(GROUPS)]
        self.repaint()
