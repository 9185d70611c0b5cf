"""Data: how long the rows of a dataset are, the worst batch, and what cutting them at a length costs and saves."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import ProgressBar

from qlora_planner.report.parts.theme import VERDICT_WORDS, Line, verdict_style
from qlora_planner.tui.control.figures import DATA, DATA_VIEW
from qlora_planner.tui.screens.base import Page
from qlora_planner.tui.screens.dialogs import TextScreen
from qlora_planner.tui.widgets.data import Histogram, Slider, bins_of
from qlora_planner.tui.widgets.outside import Pane
from qlora_planner.tui.widgets.run import as_text

if TYPE_CHECKING:
    from qlora_planner.data.batches.summary import DataSummary
    from qlora_planner.tui.control.datasets import DataView

_SHAPES = """
A line of train.jsonl is one row, in any of these shapes:

  {"text": "..."}
  {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
  {"prompt": "...", "completion": "..."}
  {"instruction": "...", "input": "...", "output": "..."}
  {"prompt": "...", "chosen": "...", "rejected": "..."}

Shown then: how long the rows are in this model's tokens, the largest batch that can come, and what cutting them
at a length costs and saves."""


class DataScreen(Page):
    """One dataset under the run now."""

    place_key = "data"
    AUTO_FOCUS = "Slider"
    SAYS = (
        "How long the rows of a dataset are in this model's tokens, the largest batch that can come, and what the"
        " slider's length cuts off and saves. d names the dataset, a takes the length for the run."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "dataset", "Dataset", tooltip="Name a dataset: jsonl, json, csv or parquet, a folder, a pattern"),
        Binding("n", "app.ask_tokenizer", "Tokenizer", tooltip="Name the tokenizer that counts, or characters a token"),
        Binding("a", "apply", "Apply", tooltip="Take the slider's length as the run's sequence"),
        Binding("u", "app.undo", "Undo", tooltip="Back to the run before"),
    ]

    def body(self) -> ComposeResult:
        """What it is, progress, histogram, percentiles, slider, figures."""
        yield Pane(id="note")
        yield ProgressBar(id="progress", show_eta=False)
        yield Histogram(id="histogram")
        yield Pane(id="percentiles")
        yield Slider(id="slider")
        with VerticalScroll(id="figures", can_focus=False):
            yield Pane(id="cut")
            yield Pane(id="epoch")

    def show(self) -> None:
        """The dataset, as far as it is counted."""
        explorer = self.explorer
        explorer.tasks.want(DATA)
        explorer.tasks.want(DATA_VIEW)
        data, view = self.state.data, self.state.data_view
        self.put("#note", self._note(data))
        progress = self.query_one("#progress", ProgressBar)
        progress.display = self.state.data_progress is not None
        if self.state.data_progress is not None:
            done, size, _ = self.state.data_progress
            progress.update(total=size or None, progress=done)
        histogram, slider = self.query_one(Histogram), self.query_one(Slider)
        histogram.display = slider.display = data is not None
        histogram.plain = slider.plain = explorer.plain
        if data is not None and self.focused is None:
            self.set_focus(slider)
        if data is None:
            for selector in ("#percentiles", "#epoch"):
                self.put(selector, Text(""))
            self.put("#cut", Text(_SHAPES if self.state.data_source is None else "", style="dim"))
            return
        from qlora_planner.tui.control.datasets import stops

        at = self.state.run.seq_len if self.state.cut is None else self.state.cut
        histogram.bins = bins_of(*data.histogram())
        histogram.cut = slider.at = at
        slider.stops = stops(data, None if self.state.subject is None else self.state.subject.model_limit)
        self.put("#percentiles", self._percentiles(data))
        if view is not None:
            self._figures(view)

    def _note(self, data: DataSummary | None) -> Text:
        source = self.state.data_source
        if self.state.data_fault is not None:
            return Text(f"{self.state.data_fault}; d names another dataset, n a tokenizer", style="bold red")
        if source is None:
            return Text("No dataset yet: d names one (jsonl, json, csv or parquet), or start with --data FILE.")
        if data is None and self.state.data_progress is None:
            return Text(f"{source.path}: choose a model in Fit (1), whose tokenizer counts it.")
        if data is None:
            rows = self.state.data_progress[2] if self.state.data_progress is not None else 0
            return Text(f"counting {source.path}: {rows:,} rows so far")
        guess = "about " if data.guessed else ""
        text = Text(f"{source.path}: {data.rows:,} rows ({data.shape}), {guess}{data.tokens:,} tokens", style="bold")
        if data.guessed:
            text.append(f", a guess of {data.chars_per_token:g} characters a token", style="yellow")
        elif data.tokenizer is not None:
            text.append(f", tokenizer of {data.tokenizer}", style="dim")
        if data.bad_rows:
            text.append(f"; {data.bad_rows:,} rows left out: {data.first_bad[0].why}", style="yellow")
        for thing in data.unmodelled:
            text.append(f"; {thing.what}", style="yellow")
        return text

    def _percentiles(self, data: DataSummary) -> Text:
        text = Text("rows up to: ", style="dim", no_wrap=True)
        for name, length in data.percentiles().items():
            text.append("all " if name == "100" else f"{name}% ", style="dim")
            text.append(f"{length:,}  ", style="bold")
        return text

    def _figures(self, view: DataView) -> None:
        from qlora_planner.report.data import batching_lines, worst_lines
        from qlora_planner.report.parts.labels import gib
        from qlora_planner.units import format_gib

        theme = self.theme_at(self.size.width - 1)
        cut, verdict = view.plan.cut, view.verdict
        saved: Line = [("saves        ", "dim")]
        if cut.seq_len >= view.uncut:
            saved.append((f"nothing is cut; the peak is {format_gib(view.peak_bytes)}", ""))
        else:
            saved.append((f"{format_gib(view.saved_bytes)}", "bold green"))
            against = f" against {view.uncut:,} tokens: a peak of {gib(view.peak_bytes)}"
            saved.append((f"{against} instead of {gib(view.uncut_peak_bytes)} GiB", ""))
        saved.append((f"  {theme.glyph(verdict)} {VERDICT_WORDS.get(verdict, verdict)}", verdict_style(verdict)))
        self.put("#cut", as_text([saved, *worst_lines(view.plan, theme)]))
        self.put("#epoch", as_text(batching_lines(view.plan, theme)))

    def on_slider_moved(self, event: Slider.Moved) -> None:
        """Cut elsewhere."""
        self.explorer.controller.cut_at(event.tokens)

    def action_apply(self) -> None:
        """The slider's length becomes the run's."""
        explorer = self.explorer
        if self.state.subject is None or self.state.data is None:
            explorer.notify("no dataset under a model yet: d names one")
            return
        cut = self.state.cut
        if cut is None or cut == self.state.run.seq_len:
            explorer.notify(f"the run has {self.state.run.seq_len:,} tokens already")
            return
        explorer.controller.change({"seq_len": cut})
        explorer.notify(f"the run has sequences of {cut:,} tokens; u undoes")

    def action_dataset(self) -> None:
        """Name a dataset."""
        explorer = self.explorer
        path = "" if self.state.data_source is None else self.state.data_source.path
        asks = "A dataset: a file, a folder or a pattern of jsonl, json, csv or parquet"
        self.app.push_screen(TextScreen(asks, path, hint="train.jsonl"), explorer.controller.name_data)
