"""A dataset under a plan as a screen: how long its rows are, the worst batch, what cutting and packing do."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_planner.data.batches.epochs import BFD, GROUPED, RANDOM, WRAPPED, DataPlan, Epoch
from qlora_planner.data.batches.summary import OUTLIER_RATIO, DataSummary
from qlora_planner.report.parts.labels import binary_count, gib
from qlora_planner.report.parts.theme import Line, Theme, columns
from qlora_planner.units import format_size

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_LEVELS = " .:-=+*#@"
_MARK = 8  # columns of one bin of the histogram
_NAMES = {
    RANDOM: "padding, shuffled",
    GROUPED: "padding, group_by_length",
    BFD: "packing, bfd",
    WRAPPED: "packing, wrapped",
}


def render_data(plan: DataPlan, theme: Theme) -> list[Line]:
    """The section that a plan's screen shows of its dataset."""
    lines = [*_about(plan.summary, theme), *_lengths(plan.summary, theme), []]
    lines += [*worst_lines(plan, theme), []]
    lines += [*_truncations(plan, theme), []]
    return [*lines, *batching_lines(plan, theme)]


def _about(summary: DataSummary, theme: Theme) -> Iterator[Line]:
    files = summary.paths[0] if len(summary.paths) == 1 else f"{len(summary.paths)} files, {summary.paths[0]} first"
    text = (
        f"{files}: {_count(summary.rows, 'row')} ({summary.shape}), {_tokens(summary, summary.tokens)}, "
        f"{format_size(summary.size_bytes)}"
    )
    yield from theme.wrap(text, 6, "data", first_style="dim")
    if summary.guessed:
        guess = f"a guess: no tokenizer, {summary.chars_per_token:g} characters taken as a token"
        yield from theme.wrap(guess, 6, style="bold yellow")
    elif summary.tokenizer is not None:
        yield from theme.wrap(f"counted with the tokenizer of {summary.tokenizer}", 6, style="dim")
    for thing in summary.unmodelled:
        yield from theme.wrap(thing.what, 6, style="bold yellow")
    if summary.bad_rows:
        first, word = summary.first_bad[0], summary.row_word
        text = f"{_count(summary.bad_rows, 'row')} left out, the first in {word} {first.line}: {first.why}"
        yield from theme.wrap(text, 6, style="bold yellow")
    if summary.outliers:
        shown = ", ".join(f"{summary.row_word} {row.line:,} ({row.tokens:,})" for row in summary.outliers)
        more = summary.outlier_rows - len(summary.outliers)
        rest = f" and {more:,} more" if more else ""
        text = f"above {OUTLIER_RATIO} x the 99th percentile: {shown}{rest}; the longest decides the peak"
        yield from theme.wrap(text, 6, style="bold yellow")


def _lengths(summary: DataSummary, theme: Theme) -> Iterator[Line]:
    """Percentiles, and the histogram in blocks with a bin's left edge below each."""
    percentiles = summary.percentiles()
    head = f"{'tokens by percentile'}{' (guess)' if summary.guessed else ''}"
    widths = (28, *[7] * len(percentiles))
    names = [f"{name} %" if name != "100" else "longest" for name in percentiles]
    left = frozenset({0})
    if sum(widths) + len(percentiles) > theme.width:
        widths = (max(12, theme.width - 8 * len(percentiles)), *widths[1:])
    yield columns([(theme.cut(head, widths[0]), "dim"), *((name, "dim") for name in names)], widths, left, gap=1)
    yield columns([("", ""), *((_length(length), "") for length in percentiles.values())], widths, left, gap=1)
    edges, counts = summary.histogram()
    scale = theme.sign(_EIGHTHS, _LEVELS)
    shown = max(1, theme.width // _MARK)
    edges, low = edges[:-1], sum(counts[:-shown])
    labels = [binary_count(edge) for edge in edges][-shown:]
    counts = counts[-shown:]
    if low:  # what has no room of its own stands in the first bin
        counts[0] += low
        labels[0] = f"<{labels[1]}"
    most = max(counts)
    bars = [_level(count, most, scale).ljust(_MARK - 1) for count in counts]
    yield [(" ".join(bars), "cyan")]
    yield [(" ".join(label.ljust(_MARK - 1) for label in labels), "dim")]


def _level(count: int, most: int, scale: str) -> str:
    """A block as high as the bin is full; what is not empty is seen."""
    if not count:
        return ""
    return scale[max(1, round((len(scale) - 1) * count / most))] * (_MARK - 2)


def worst_lines(plan: DataPlan, theme: Theme) -> Iterator[Line]:
    """The largest batch that can come, what the run's length cuts off, and an epoch."""
    epoch, summary = plan.epoch, plan.summary
    rows = min(plan.batch_size, max(1, epoch.rows))
    longest = epoch.worst_tokens // rows
    if plan.packing:
        text = (
            f"{_count(rows, 'packed row')} of at most {plan.seq_len:,} tokens: {_tokens(summary, epoch.worst_tokens)}"
        )
    else:
        text = f"{rows} x {longest:,} tokens = {_tokens(summary, epoch.worst_tokens)}, padded to its longest row"
    line = f" ({summary.row_word} {summary.longest.line:,})" if longest == summary.longest.tokens else ""
    yield from theme.wrap(f"{text}{line}", 13, "worst batch", first_style="dim")
    cut = plan.cut
    if cut.rows_cut:
        text = (
            f"--seq-len {plan.seq_len} cuts {_count(cut.rows_cut, 'row')} ({_share(cut.rows_cut_share)}) and loses "
            f"{_tokens(summary, cut.tokens_lost)} ({_share(cut.tokens_lost_share)})"
        )
        if cut.rows_dropped:
            text += f"; {_count(cut.rows_dropped, 'row')} with no answer left dropped" if not plan.packing else ""
        yield from theme.wrap(text, 13, style="bold yellow")
    hours = f", {hours_text(epoch.hours)}" if epoch.hours is not None else ""
    text = f"{_count(epoch.steps, 'step')}, {_tokens(summary, epoch.padded_tokens)} computed on{hours}"
    yield from theme.wrap(text, 13, "an epoch", first_style="dim")


def _truncations(plan: DataPlan, theme: Theme) -> Iterator[Line]:
    peaks = [row.peak_bytes for row in plan.truncations]
    mark = _mark(plan.summary)
    heads = ["cut at", "--seq-len", "rows cut", "share", "tokens lost", "share"]
    widths = [8, 9, 10, 8, 13, 8]
    if any(peak is not None for peak in peaks):
        heads, widths = [*heads, "peak GiB"], [*widths, 9]
    left = frozenset({0})
    yield columns([(head, "dim") for head in heads], widths, left, gap=1)
    for row in plan.truncations:
        cells = [
            "longest" if row.percentile == 100 else f"{row.percentile:g} %",
            f"{mark}{row.seq_len:,}",
            f"{mark}{row.rows_cut:,}",
            _share(row.rows_cut_share),
            f"{mark}{row.tokens_lost:,}",
            _share(row.tokens_lost_share),
            gib(row.peak_bytes),
        ]
        yield columns([(cell, "") for cell in cells[: len(heads)]], widths, left, gap=1)


def batching_lines(plan: DataPlan, theme: Theme) -> Iterator[Line]:
    """A table of the ways of making batches, the run's own marked."""
    heads = [f"batches of {plan.batch_size}", "rows", "steps", "tokens computed", "padding", "filled"]
    widths = [26, 10, 8, 15, 8, 7]
    hours = any(epoch.hours is not None for epoch in plan.epochs.values())
    if hours:
        heads[3], widths = "tokens", [24, 9, 8, 13, 7, 7]
        heads, widths = [*heads, "hours"], [*widths, 6]
    widths[3] -= min(3, max(0, sum(widths) + len(widths) - 1 - theme.width))
    left = frozenset({0})
    yield columns([(head, "dim") for head in heads], widths, left, gap=1)
    for epoch in plan.epochs.values():
        chosen = epoch.name == plan.epoch.name
        cells = _cells(epoch, _mark(plan.summary), hours)
        yield columns([(cell, "bold" if chosen else "") for cell in cells], widths, left, gap=1)


def _cells(epoch: Epoch, mark: str, hours: bool) -> list[str]:
    cells = [
        _NAMES[epoch.name],
        f"{epoch.rows:,}",
        f"{epoch.steps:,}",
        f"{mark}{epoch.padded_tokens:,}",
        _share(epoch.waste),
        _share(epoch.fill),
    ]
    return (
        [*cells, "-" if epoch.hours is None else f"{epoch.hours:.{1 if epoch.hours >= 10 else 2}f}"] if hours else cells
    )


def _tokens(summary: DataSummary, count: int) -> str:
    return f"about {count:,} tokens (a guess)" if summary.guessed else f"{count:,} tokens"


def _length(tokens: int) -> str:
    """In at most seven columns."""
    return f"{tokens:,}" if tokens < 10**6 else f"{tokens}"


def _mark(summary: DataSummary) -> str:
    """What stands before a figure that is a guess."""
    return "~" if summary.guessed else ""


def _count(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _share(share: float) -> str:
    """Percent; what is not nothing never reads as nothing."""
    if 0 < share < 0.0005:
        return "<0.1 %"
    return f"{100 * share:.1f} %"


def hours_text(hours: float) -> str:
    """`2.8 h`, `41 min`, or less than a minute."""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 60 else "less than a minute"
