"""The table of models: filtered, sorted, grouped, and each row in the words of its cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from qlora_planner.report.parts.labels import count
from qlora_planner.tui.widgets.rows import ModelRow
from qlora_planner.units import GIB, format_gib

HEADS = ("", "model", "size", "GiB", "longest", "best run", "tokens/s")
GUESSED, GUESSED_SAYS = ">", "weights alone, no step is recorded"
GROUPS = ("none", "family", "size")
_ORDER = ("fits", "tight", "cannot-say", "does-not-fit", "will-not-run")
_SIZES = ((2, "under 2B"), (5, "2B to 5B"), (10, "5B to 10B"), (20, "10B to 20B"), (50, "20B to 50B"))
SORTS: dict[str, Callable[[ModelRow], Any]] = {
    "verdict": lambda row: (_ORDER.index(row.verdict), -row.params, row.model_id),
    "size": lambda row: (-row.params, row.model_id),
    "memory": lambda row: (-row.peak_bytes, row.model_id),
    "longest": lambda row: (-(row.longest_seq_len or 0), row.model_id),
    "speed": lambda row: (-(row.tokens_per_s or 0), row.model_id),
    "name": lambda row: row.model_id.lower(),
}


# The order that a head stands for.
SORTED_BY = {"": "verdict", "model": "name", "size": "size", "GiB": "memory", "of card": "memory", "longest": "longest",
             "tokens/s": "speed"}  # fmt: skip


def chosen(
    rows: Iterable[ModelRow], text: str, sort: str, group: str, named: Callable[[str], bool] = lambda _id: False
) -> list[tuple[str, ModelRow]]:
    """The rows that hold every word of `text`, in order, each with the heading of its group (empty: none).

    A word is looked for in the model's id, its family and its verdict; `named` says which ids the text names otherwise.
    """
    words = text.lower().split()
    matching = [row for row in rows if all(word in _searched(row) for word in words) or named(row.model_id)]
    matching.sort(key=SORTS.get(sort, SORTS["verdict"]))
    if group == "family":
        return sorted(((row.family, row) for row in matching), key=lambda pair: pair[0])
    if group == "size":
        return sorted(((_size(row), row) for row in matching), key=lambda pair: -_bucket(pair[1]))
    return [("", row) for row in matching]


def cells(row: ModelRow, glyph: str) -> Sequence[str]:
    """One row as text, in the order of `HEADS`."""
    speed = row.tokens_per_s
    return (
        glyph, row.model_id, count(row.params), _gib(row),
        "-" if row.longest_seq_len is None else f"{row.longest_seq_len:,}",
        best(row), "-" if speed is None else f"{speed:,.0f}",
    )  # fmt: skip


def guessed(row: ModelRow) -> bool:
    """Whether only what a run holds before its first step is known, as no trace of it ships."""
    return not row.traced and row.peak_bytes > 0 and row.verdict != "will-not-run"


def _gib(row: ModelRow) -> str:
    if not row.peak_bytes:
        return "-"
    return f"{GUESSED if guessed(row) else ''}{row.peak_bytes / GIB:,.1f}"


def best(row: ModelRow, short: bool = False) -> str:
    """The recommended run in a few words, `short` without a word on checkpointing; why not, where there is none."""
    options = row.options
    if options is None:
        lacks = row.shortfall_bytes
        return row.note or (f"{format_gib(lacks)} short" if lacks else "-")
    quant = options.get("quant", "nf4")
    stored = {"none": "16-bit", "int8": "8-bit"}.get(str(quant), "4-bit")
    if quant == "nf4" and options.get("double_quant") is False:
        stored = "4-bit plain"
    batch, accum = options.get("batch_size", 1), options.get("grad_accum", 1)
    every = options.get("checkpoint_every")
    kept = f", 1 in {every}" if every else "" if options.get("gradient_checkpointing", True) else ", no ckpt"
    kept = "" if short else kept
    return f"{stored}, {batch} x {accum}{kept}"


def tally(rows: Iterable[ModelRow]) -> dict[str, int]:
    """How many models have each verdict."""
    counts = dict.fromkeys(_ORDER, 0)
    for row in rows:
        counts[row.verdict] += 1
    return counts


def _searched(row: ModelRow) -> str:
    return f"{row.model_id} {row.family} {row.verdict}".lower()


def _bucket(row: ModelRow) -> int:
    return next((most for most, _ in _SIZES if row.params < most * 10**9), 1000)


def _size(row: ModelRow) -> str:
    return next((name for most, name in _SIZES if row.params < most * 10**9), "50B and more")
