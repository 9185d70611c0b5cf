"""What fits on a card, as a table to read: grouped by verdict, folded by family, ending in one thing to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from qlora_planner.catalog.gpus import remarks
from qlora_planner.catalog.gpus.several import card_words
from qlora_planner.planner.survey.survey import Recommended, SurveyRow
from qlora_planner.report.estimate import next_command
from qlora_planner.report.parts.labels import card_line, limit_label, recipe
from qlora_planner.report.parts.row_selection import fold_text, larger_than, pick
from qlora_planner.report.parts.theme import VERDICT_WORDS, Line, Theme, columns, verdict_style
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.run import RunConfig
from qlora_planner.units import GIB, format_mib

CSV_HEADS = (
    "model", "family", "params", "verdict", "longest_seq_len", "largest_batch", "peak_bytes", "headroom_bytes",
    "usable_bytes", "shortfall_bytes", "limiting", "recipe", "note",
)  # fmt: skip

# Rows that a folded table shows of each group, at most; what a group does not use goes to the models that fit.
_SHARES = {"fits": 15, "tight": 4, "cannot-say": 4, "does-not-fit": 5, "will-not-run": 2}
_ROWS = 23
# How a row is read: what stands in it, and what that means.
_READ = (
    ("longest", "tokens that fit at batch 1; batch: sequences of {seq_len} that fit"),
    ("peak", "what is alive at once, summed; `plan MODEL` simulates it, and lengths"),
    (">", "weights and adapters alone: no training step of it is recorded"),
    (
        "4-bit 1x16/8", "4-bit weights, batch 1, 16 batches a step, 1 layer in 8 checkpointed (+: none); where none"
        " fits, what fills the card",
    ),
)  # fmt: skip
_EXPLANATION = (
    "fits: the chance of running out of memory is at most 1 %; tight: at most 50 %",
    "longest: in steps of 64, at most what the model was trained for; peak: what the driver would show; of card:"
    " against what a process can use; best run: the fastest that fits",
)


def render_survey(
    rows: Sequence[SurveyRow],
    gpu: GpuSpec,
    run: RunConfig,
    theme: Theme,
    *,
    card: str,
    every: bool = False,
    explain: bool = False,
) -> str:
    """The whole screen. `card` is the card as it was typed, for the command at the end."""
    usable = rows[0].usable_bytes if rows else gpu.memory_bytes
    lines = theme.wrap(f"{card_line(gpu)}. A process can use {format_mib(usable)}.")
    for remark in remarks(gpu, run.stack):
        lines += theme.wrap(remark.message, 9, "  note", first_style="yellow")
        lines += theme.wrap(remark.fix, 9, "  fix:", style="cyan", first_style="dim")
    lines += theme.wrap(f"recipe: {_recipe(rows, run)}", 2, style="dim")
    lines.append([])
    widths = _widths(theme)
    lines += _heads(widths, run)
    shares = dict(_SHARES)
    groups = {verdict: [row for row in rows if row.verdict == verdict] for verdict in _SHARES}
    shares["fits"] = _ROWS - sum(min(shares[name], len(group)) for name, group in groups.items() if name != "fits")
    shown_fits: list[SurveyRow] = []
    for verdict, group in groups.items():
        if not group:
            continue
        shown = list(group) if every else pick(group, shares[verdict], rows, nearest=verdict == "does-not-fit")
        shown_fits = shown if verdict in ("fits", "tight") and not shown_fits else shown_fits
        lines += _group(verdict, group, shown, widths, theme)
    lines.append([])
    guessed = any(not row.traced and row.verdict != "will-not-run" for row in rows)
    for word, means in _READ:
        if guessed or word != ">":
            lines += theme.wrap(
                means.format(seq_len=f"{run.seq_len:,}"), 16, f"  {word}", style="dim", first_style="dim"
            )
    if explain:
        for text in _EXPLANATION:
            lines += theme.wrap(text, 2, style="dim")
    lines += [[], *_next(rows, shown_fits, card, run, theme)]
    return theme.render(lines)


def csv_row(row: SurveyRow) -> list[Any]:
    """One model as CSV_HEADS names its fields."""
    return [
        row.model_id, row.family, row.params, row.verdict, row.longest_seq_len, row.largest_batch, row.peak_bytes,
        row.headroom_bytes, row.usable_bytes, row.shortfall_bytes, row.limiting, recipe(row.run, sizes=False), row.note,
    ]  # fmt: skip


def survey_frame(rows: Sequence[SurveyRow]) -> Any:
    """The same as a pandas frame, with types that keep integers and unknowns apart."""
    import pandas

    sizes = [name for name in CSV_HEADS if name.endswith("_bytes")] + ["params", "longest_seq_len", "largest_batch"]
    types = {**dict.fromkeys(CSV_HEADS, "string"), **dict.fromkeys(sizes, "Int64")}
    return pandas.DataFrame([csv_row(row) for row in rows], columns=list(CSV_HEADS)).astype(types)


def _recipe(rows: Sequence[SurveyRow], run: RunConfig) -> str:
    """The recipe that most models get; where a model needs another, --json says so."""
    counts = Counter(recipe(row.run, sizes=False) for row in rows if row.verdict != "will-not-run")
    if not counts:
        return recipe(run, sizes=False)
    text, count = counts.most_common(1)[0]
    others = sum(counts.values()) - count
    return f"{text}; {others} models need another (--json)" if others else text


def _widths(theme: Theme) -> tuple[int, ...]:
    """Columns: model, size, longest, batch, peak, bar, limit; with two of indent and one between, the whole width."""
    fixed = (6, 8, 6, 6)
    limit = 12
    room = theme.width - 2 - sum(fixed) - limit - 6
    bar = min(14, room // 4)
    return (room - bar, *fixed, bar, limit)


def _heads(widths: Sequence[int], run: RunConfig) -> Iterator[Line]:
    left = frozenset({0, 5, 6})
    top = ("", "", "longest", "batch", "peak", "", "")
    low = ("model", "size", "sequence", f"@{run.seq_len:,}", "GiB", "of card", "best run")
    for names in (top, low):
        cells = [(name[:width], "dim") for name, width in zip(names, widths, strict=True)]
        yield [("  ", ""), *columns(cells, widths, left, gap=1)]


def _group(
    verdict: str, group: Sequence[SurveyRow], shown: Sequence[SurveyRow], widths: Sequence[int], theme: Theme
) -> Iterator[Line]:
    style = verdict_style(verdict)
    yield [(f"{theme.glyph(verdict)} {VERDICT_WORDS[verdict]} ({len(group)})", f"bold {style}")]
    for row in shown:
        yield from _row(row, widths, style, theme)
    names = {row.model_id for row in shown}
    hidden = [row for row in group if row.model_id not in names]
    if hidden:
        larger = larger_than(shown, hidden) if verdict in ("fits", "tight") else 0
        yield from theme.wrap(fold_text(hidden, theme.ellipsis, larger=larger), 4, "  ", style="dim")


def _row(row: SurveyRow, widths: Sequence[int], style: str, theme: Theme) -> Iterator[Line]:
    name = theme.cut(row.model_id.partition("/")[2] or row.model_id, widths[0])
    cells = [(name, ""), (_size(row.params), "")]
    if row.verdict == "will-not-run":
        line = [("  ", ""), *columns(cells, widths[:2], frozenset({0}), gap=1), ("  ", "")]
        room = theme.width - sum(len(text) for text, _ in line)
        yield [*line, (theme.cut(row.note or "these library versions refuse the run", room), "dim")]
        return
    seq_len = f"{row.longest_seq_len:,}" if row.longest_seq_len else "-"
    batch = f"{row.largest_batch:,}" if row.largest_batch else "-"
    cells += [(seq_len, ""), (batch, ""), (f"{'' if row.traced else '>'}{_short_gib(row.peak_bytes)}", "")]
    line = [("  ", ""), *columns(cells, widths[:5], frozenset({0}), gap=1), (" ", "")]
    if row.shortfall_bytes:
        line.append((f"{_short_gib(row.shortfall_bytes)} over".ljust(widths[5]), style))
    else:
        line += theme.gauge(row.peak_bytes, row.usable_bytes, widths[5], style)
    room = theme.width - sum(len(text) for text, _ in line) - 1
    last = limit_label(row.limiting, row.run.quant) if row.recommended is None else best_run(row.recommended)
    yield [*line, (" ", ""), (last[:room], "dim")]


def best_run(best: Recommended) -> str:
    """`4-bit 8x2/4`: how weights are stored, micro-batch times accumulation, and of how many layers one is
    checkpointed; a plus where none is."""
    options = best.options
    bits = "16-bit" if options.get("method") == "lora" else "8-bit" if options.get("quant") == "int8" else "4-bit"
    every = options.get("checkpoint_every")
    kept = f"/{every}" if every else "" if options.get("gradient_checkpointing", True) else "+"
    return f"{bits} {options.get('batch_size', 1)}x{options.get('grad_accum', 1)}{kept}"


def _short_gib(size_bytes: int) -> str:
    """In at most five columns."""
    size_gib = size_bytes / GIB
    return f"{size_gib:.1f}" if size_gib < 999 else f"{size_gib:.0f}"


def _size(params: int) -> str:
    return f"{params / 1e9:.1f}B" if params >= 950 * 10**6 else f"{params / 1e6:.0f}M"


def _task(run: RunConfig) -> str:
    """What says that it is not text that is learnt."""
    if run.task is None:
        return ""
    return f" --task {run.task}" + (f" --num-labels {run.num_labels}" if run.num_labels else "")


def _images(run: RunConfig) -> str:
    """The images of a run as they are typed."""
    typed = (("images", run.images), ("image-size", run.image_size), ("image-tokens", run.image_tokens))
    return "".join(f" --{option} {value}" for option, value in typed if value is not None)


def _next(
    rows: Sequence[SurveyRow], shown: Sequence[SurveyRow], card_name: str, run: RunConfig, theme: Theme
) -> Iterator[Line]:
    """One command that goes on from here."""
    card = card_words(card_name) + _task(run) + _images(run)
    usable = [row for row in shown if (row.longest_seq_len or 0) >= min(run.seq_len, 1024)] or list(shown)
    shorter = [row for row in rows if row.longest_seq_len and row.verdict == "does-not-fit"]
    if usable:
        best = max(usable, key=lambda row: (row.params, row.model_id))
        shown_names = {row.model_id for row in shown}
        hidden = [row for row in rows if row.verdict == best.verdict and row.model_id not in shown_names]
        larger = larger_than([best], hidden)
        besides = f"; {larger} larger {'fits' if larger == 1 else 'fit'} too, --all shows them" if larger else ""
        end, why = f"{card}", f"the plan of the largest one shown{besides}"
    elif shorter:
        best = max(shorter, key=lambda row: (row.params, row.model_id))
        end = f"{card} --seq-len {best.longest_seq_len}"
        why = "nothing fits so; with shorter sequences this does"
    elif run.shows_images and (unsure := [row for row in rows if row.verdict == "cannot-say"]):
        best = max(unsure, key=lambda row: (row.params, row.model_id))
        end, why = card, "traces the largest of which nobody can say yet"
    elif any(row.verdict == "cannot-say" for row in rows):
        yield [("next: ", "bold"), (f"qlora-plan {card}", "cyan")]
        yield from theme.wrap("(without what is not modelled; --json says what that is)", 6, style="dim")
        return
    else:
        yield [("next: ", "bold"), ("qlora-plan gpus", "cyan")]
        yield from theme.wrap("(nothing fits; these are the cards that are known)", 6, style="dim")
        return
    yield from next_command(f"qlora-plan {{}} {end}", best.model_id, theme)
    yield from theme.wrap(f"({why})", 6, style="dim")
