"""Run: the knobs of one run, and its memory as they are turned."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import DataTable, Static

from qlora_planner.tui import view
from qlora_planner.tui.knobs import KNOBS
from qlora_planner.tui.screens.base import Page
from qlora_planner.tui.widgets import KnobList


class RunScreen(Page):
    """Knobs on the left, figures on the right."""

    place_key = "run"
    AUTO_FOCUS = "KnobList"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "app.recommend", "Recommended"),
        Binding("u", "app.undo", "Undo"),
        Binding("p", "app.pin", "Pin"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[tuple[str, str, str, str, str]] = []

    def body(self) -> ComposeResult:
        """Two columns."""
        with Horizontal(id="columns"):
            with Vertical(id="left"):
                yield KnobList(id="knobs")
                yield Static(id="says")
            with VerticalScroll(id="right", can_focus=False):
                yield Static(id="verdict")
                yield Static(id="bar")
                yield Static(id="phases")
                table: DataTable[Text] = DataTable(id="breakdown", cursor_type="row", show_header=False)
                yield table
                yield Static(id="why")
                yield Static(id="problems")

    def on_mount(self) -> None:
        """The breakdown's columns."""
        table = self.query_one("#breakdown", DataTable)
        for name in ("component", "MiB", "share", "basis"):
            table.add_column(name, key=name)

    def show(self) -> None:
        """The knobs now, and the figures of the last run that is worked out."""
        explorer = self.explorer
        knobs = self.query_one(KnobList)
        knobs.run = explorer.run_now if explorer.subject is not None else None
        self._says()
        estimate = explorer.estimate
        right = self.query_one("#right")
        right.set_class(estimate is not None and not explorer.settled, "stale")
        theme = self.theme_at(right.size.width - 3)
        if explorer.fault is not None or estimate is None:
            text = Text(explorer.fault or "", style="magenta")
            self.query_one("#verdict", Static).update(text if explorer.fault else "")
            if estimate is None:
                return
        else:
            self.query_one("#verdict", Static).update(view.verdict_text(estimate, theme))
        self.query_one("#bar", Static).update(view.bar_text(estimate, theme))
        self.query_one("#phases", Static).update(view.phases_text(estimate, theme))
        self._breakdown(view.breakdown(estimate))
        self._why()
        self.query_one("#problems", Static).update(view.problems_text(estimate, theme))

    def _breakdown(self, rows: list[tuple[str, str, str, str, str]]) -> None:
        table = self.query_one("#breakdown", DataTable)
        if rows == self._rows:
            return
        self._rows = rows
        at = table.cursor_row
        table.clear()
        for label, size, share, basis, color in rows:
            table.add_row(
                Text(label, style=color or "bold"), Text(f"{size:>9}", style="" if color else "bold"),
                Text(f"{share:>4}"), Text(basis, style="dim"),
            )  # fmt: skip
        table.move_cursor(row=min(at, len(rows) - 1))

    def _why(self) -> None:
        estimate = self.explorer.estimate
        if estimate is not None:
            at = max(0, self.query_one("#breakdown", DataTable).cursor_row)
            theme = self.theme_at(self.query_one("#right").size.width - 3)
            self.query_one("#why", Static).update(view.why_text(estimate, at, theme))

    def _says(self) -> None:
        explorer, knob = self.explorer, KNOBS[self.query_one(KnobList).at]
        text = Text(f"{knob.label}: {knob.says}\n", style="dim")
        if explorer.refusal is not None:
            text.append(f"will not run: {explorer.refusal}\n", style="magenta")
        if explorer.subject is not None and explorer.estimate is not None:
            auto = explorer.estimate.resolved.get(knob.name)
            if auto:
                value = getattr(explorer.estimate.run, knob.name)
                text.append(f"auto is {value}: {auto}", style="dim")
        self.query_one("#says", Static).update(text)

    def on_knob_list_turned(self, event: KnobList.Turned) -> None:
        """A knob goes one place on."""
        self.explorer.turn(KNOBS[event.index], event.by)

    def on_knob_list_reached(self, event: KnobList.Reached) -> None:
        """Another knob's help."""
        self._says()

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Why the line under the cursor is as large as it is."""
        self._why()
