"""Fit: what fits on the card, over the whole catalogue; or on every size of card, a column each."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Input

from qlora_planner.report.parts.theme import VERDICT_WORDS, Theme, verdict_style
from qlora_planner.tui import core
from qlora_planner.tui.control.figures import SIZES, SURVEY_OF_SIZES
from qlora_planner.tui.screens.base import Page
from qlora_planner.tui.widgets.listing import (
    GROUPS,
    GUESSED,
    GUESSED_SAYS,
    HEADS,
    SORTED_BY,
    SORTS,
    best,
    cells,
    chosen,
    guessed,
    tally,
)
from qlora_planner.tui.widgets.outside import Pane
from qlora_planner.tui.widgets.rows import ModelRow
from qlora_planner.tui.widgets.run import as_text, card_lines
from qlora_planner.tui.widgets.tables import Table

# Columns of the table: mark, size of the model; GiB, longest, best run, tokens/s; one for a size of card. Where there
# is room, the best run says more, and GiB are a bar against the card too.
_MARK, _SIZE, _WIDTHS, _CARD, _ROOMY_CARD = 1, 7, (6, 8, 16, 9), 4, 9
_ROOMY, _BEST, _BAR = 100, 24, 8

_BEST_RUN_SAYS = "best run: weights, batch x gradient accumulation"


class FitScreen(Page):
    """The table of models."""

    AUTO_FOCUS = "#models"

    place_key = "fit"
    SAYS = (
        "What fits on the card, over the whole catalogue: the verdict of the usual recipe at 2,048 tokens, the longest"
        " sequence at batch 1, the best run and its speed. GiB is the peak of the usual recipe, a full bar is over the"
        " card. ~ before it: by formulas, as no training step of the model is recorded here, less exact. The"
        " list sums up what is alive at once; Enter simulates the run through torch's allocator. Best run 4-bit, 1 x"
        " 16, 1 in 2: weights in 4 bits, batch 1, gradients of 16 batches a step, gradient checkpointing of one layer"
        " in two. A click on a head sorts."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Filter", key_display="/", tooltip="Filter as you type: name, family, verdict"),
        Binding("s", "sort", "Sort", tooltip="The next order; a click on a head sorts by it"),
        Binding("f", "group", "Group", tooltip="Group by family, by size, not at all"),
        Binding("m", "cards", "Cards", tooltip="A column for every size of card, or the one card"),
        Binding("escape", "clear", "Clear", show=False, tooltip="From the filter to the table; there, clear it"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str | None] = []  # model id by table row; None: a heading
        self._painted: tuple[object, ...] = ()
        self._heads: tuple[str, ...] = ()
        self._room = 20  # columns of a name
        self._moved = False  # whether the reader went to a row or typed a filter: until then the list stays at its top
        self._put_at = 0  # row where the last paint left the cursor

    def body(self) -> ComposeResult:
        """Filter, tally, what to know about the card, table, what its marks mean."""
        yield Input(placeholder="filter: words of a name, a family such as qwen2, a verdict", id="filter")
        yield Pane(id="tally")
        yield Pane(id="card")
        yield Table(id="models")
        yield Pane(id="legend")

    @property
    def table(self) -> Table:
        """The models."""
        return self.query_one("#models", Table)

    def show(self) -> None:
        """Every row that the filter leaves."""
        self.put("#tally", self._tally())
        self._below_and_above()
        text = self.query_one("#filter", Input).value
        state = self.state
        shown = id(state.rows), text, state.sort, state.group, state.wide, id(state.sizes), self.size
        if shown == self._painted:
            return
        self._painted = shown
        table, here = self.table, self.current()
        self._moved = self._moved or table.cursor_row != self._put_at
        theme = self.theme_at(self.size.width)
        self._columns(table)
        self.shown = []
        last = None
        named = core.models_named(text, self.state.profiles)
        for heading, row in chosen(self.state.rows or [], text, self.state.sort, self.state.group, named):
            if heading and heading != last:
                last = heading
                self.shown.append(None)
                table.add_row(Text(""), Text(heading, style="bold underline"), *[Text("")] * (len(self._heads) - 2))
            self.shown.append(row.model_id)
            table.add_row(*(self._by_card(row, theme) if self.state.wide else self._one_card(row, theme)))
        if self._moved and here in self.shown:
            table.move_cursor(row=self.shown.index(here))
        self._put_at = table.cursor_row

    def _below_and_above(self) -> None:
        """What to know about the card, and how to read a row; each where there is something to say."""
        theme = self.theme_at(self.size.width - 2)
        lines = card_lines(self.state.card.gpu, theme)
        legend = "" if self.state.wide else _BEST_RUN_SAYS + (", 1 in n layers checkpointed" if self._roomy else "")
        if legend and any(guessed(row) for row in self.state.rows or ()):
            legend += f"; {GUESSED}: {GUESSED_SAYS}"
        for selector, text in (
            ("#card", as_text(lines)),
            ("#legend", Text(legend, style="dim")),
        ):
            self.query_one(selector).display = bool(text.plain)
            self.put(selector, text)

    def _columns(self, table: Table) -> None:
        """Columns of fixed widths: nothing is measured, and nothing moves while rows come in."""
        wide = self.state.wide
        heads: tuple[str, ...] = ("", "model", "size", *SIZES) if wide else HEADS
        each: tuple[int, ...] = (_ROOMY_CARD if self._roomy else _CARD,) * len(SIZES) if wide else _WIDTHS
        if not wide and self._barred:
            heads, each = (*heads[:4], "of card", *heads[4:]), (each[0], _BAR, each[1], _BEST, each[3])
        taken = _MARK + _SIZE + sum(each) + 2 * len(heads) + 2
        self._room = max(16, self.size.width - taken)
        widths = (_MARK, self._room, _SIZE, *each)
        self._heads = heads
        mark = self.theme_at(80).sign("▼", "v")
        sort = self.state.sort
        table.lay([Text(f"{head}{mark if SORTED_BY.get(head) == sort else ''}") for head in heads], widths)

    @property
    def _roomy(self) -> bool:
        return self.size.width >= 110

    @property
    def _barred(self) -> bool:
        return self.size.width >= _ROOMY

    def _one_card(self, row: ModelRow, theme: Theme) -> list[Text]:
        mark, name, size, memory, longest, said, speed = cells(row, theme.glyph(row.verdict))
        style = verdict_style(row.verdict)
        bar = Text.assemble(*theme.gauge(row.peak_bytes, row.usable_bytes, _BAR, style) if row.peak_bytes else ())
        said = said if self._barred else theme.cut(best(row, short=True), _WIDTHS[2])
        return [
            Text(mark, style=f"bold {style}"), Text(self._short(name, self._room, theme)), Text(size, justify="right"),
            Text(memory, justify="right"), *([bar] if self._barred else []), Text(longest, justify="right"),
            Text(theme.cut(said, _BEST)), Text(speed, justify="right"),
        ]  # fmt: skip

    def _by_card(self, row: ModelRow, theme: Theme) -> list[Text]:
        """A sign for each size, and the longest sequence where the terminal is wide enough for it."""
        mark, name, size, *_ = cells(row, theme.glyph(row.verdict))
        texts = [
            Text(mark, style=f"bold {verdict_style(row.verdict)}"),
            Text(self._short(name, self._room, theme)), Text(size, justify="right"),
        ]  # fmt: skip
        for head in self._heads[3:]:
            there = self.state.by_card.get(head, {}).get(row.model_id)
            if there is None:
                texts.append(Text(theme.ellipsis, style="dim"))
                continue
            longest = f" {there.longest_seq_len:,}" if self._roomy and there.longest_seq_len else ""
            texts.append(Text(f"{theme.glyph(there.verdict)}{longest}", style=verdict_style(there.verdict)))
        return texts

    @staticmethod
    def _short(name: str, room: int, theme: Theme) -> str:
        return name if len(name) <= room else theme.cut(name.rpartition("/")[2], max(12, room))

    def current(self) -> str | None:
        """The model under the cursor."""
        at = self.table.cursor_row
        return self.shown[at] if 0 <= at < len(self.shown) else None

    def _tally(self) -> Text:
        text = Text(no_wrap=True, overflow="ellipsis")
        theme = self.theme_at(80)
        if self.state.rows is None:
            text.append(f"looking at every model of the catalogue {theme.ellipsis}", style="italic")
        else:
            for verdict, number in tally(self.state.rows).items():
                if number:
                    text.append(f"{theme.glyph(verdict)} {number} ", style=f"bold {verdict_style(verdict)}")
                    text.append(f"{VERDICT_WORDS[verdict]}  ")
            if not self.state.survey.done:
                text.append(f"so far {theme.ellipsis}  ", style="italic")
            text.append(f"sort {self.state.sort}", style="dim")
            if self.state.group != "none":
                text.append(f", by {self.state.group}", style="dim")
        if self.state.card.note:
            text.append(f"  {self.state.card.note}", style="yellow")
        return text

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter as one types; what is looked for is followed from then on."""
        self._moved = True
        self.repaint()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Back to the table."""
        self.set_focus(self.table)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open the model."""
        model = self.current()
        self._moved = True
        if model is not None:
            self.explorer.controller.open_model(model)

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        """The order that a head stands for."""
        wanted = SORTED_BY.get(self._heads[event.column_index])
        if wanted is not None:
            self.state.sort = wanted
            self.repaint()

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
        at = names.index(self.state.sort) if self.state.sort in names else -1
        self.state.sort = names[(at + 1) % len(names)]
        self.repaint()

    def action_group(self) -> None:
        """The next grouping."""
        at = GROUPS.index(self.state.group) if self.state.group in GROUPS else -1
        self.state.group = GROUPS[(at + 1) % len(GROUPS)]
        self.repaint()

    def action_cards(self) -> None:
        """Every size of card beside each other, or the one card."""
        self.state.wide = not self.state.wide
        if self.state.wide:
            self.explorer.tasks.want(SURVEY_OF_SIZES)
        self.repaint()
