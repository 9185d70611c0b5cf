"""The two tables as a screen, as Markdown and as CSV rows; what of common advice their figures contradict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from qlora_planner.planner.survey.size_rows import (
    METHODS,
    CardRow,
    Figure,
    Largest,
    MemoryRow,
    Tables,
)
from qlora_planner.report.parts.labels import gib
from qlora_planner.report.parts.myths import myths, short_name
from qlora_planner.report.parts.theme import Line, Theme, columns
from qlora_planner.spec.run import RunConfig

CSV_HEADS = ("table", "model", "params", "card", "method", "figure", "bytes", "basis", "verdict")
_LEFT = frozenset({0})
_FULL = METHODS[0].options["optimizer"]


def recipe_line(run: RunConfig) -> str:
    """What every figure holds for."""
    kept = "gradient checkpointing" if run.gradient_checkpointing else "no gradient checkpointing"
    return (
        f"{run.batch_size} x {run.seq_len:,} tokens, {kept}, LoRA rank {run.rank} on all linear layers with"
        f" {run.optimizer}; full fine-tuning keeps bfloat16 weights, gradients and states of {_FULL}"
    )


NOTES = (
    "GiB that the driver shows for the process at its peak, CUDA context included; ~ by formulas, less exact",
    "dq: what double quantisation saves, counted; upcast: what prepare_model_for_kbit_training costs at the peak",
    "the largest model whose chance of running out is at most 1 %; after /, a larger one that more likely than not"
    " fits, where formulas can say no more",
)


def render_tables(tables: Tables, theme: Theme) -> str:
    """The whole screen."""
    lines: list[Line] = [*theme.wrap(recipe_line(tables.run), style="dim"), []]
    if tables.memory:
        lines += [*_memory(tables.memory, theme), []]
    if tables.cards:
        lines += [*_cards(tables.cards, theme), []]
    for text in advice_lines(tables):
        lines += theme.wrap(text, 2, "- ")
    lines.append([])
    for text in NOTES:
        lines += theme.wrap(text, 2, style="dim")
    return theme.render(lines)


def _memory(rows: Sequence[MemoryRow], theme: Theme) -> Iterator[Line]:
    figures = (9, 8, 8, 8)
    widths = (theme.width - sum(figures) - 14 - 12, *figures, 5, 7)
    heads = ("GiB by model", "full", "LoRA", "8-bit", "4-bit", "dq", "upcast")
    yield columns([(head, "dim") for head in heads], widths, _LEFT)
    for row in rows:
        cells = [(theme.cut(short_name(row.model_id), widths[0]), "")]
        cells += [(_figure(row.figures[method.name]), "") for method in METHODS]
        cells += [(f"-{gib(row.double_quant_saves_bytes)}", "green"), (_upcast(row), "yellow")]
        yield columns(cells, widths, _LEFT)


def _cards(rows: Sequence[CardRow], theme: Theme) -> Iterator[Line]:
    room = (theme.width - 6 - 2 * len(METHODS)) // len(METHODS)
    widths, left = (6, *[room] * len(METHODS)), frozenset(range(len(METHODS) + 1))
    yield columns([("card", "dim"), *((method.label, "dim") for method in METHODS)], widths, left)
    for row in rows:
        cells = [(_mark(model) + _name(model), "") for model in row.largest.values()]
        yield columns([(row.card.name, ""), *((theme.cut(text, room), style) for text, style in cells)], widths, left)


def markdown_memory(tables: Tables) -> str:
    """Memory by model, with what it holds for."""
    heads = ["model", *(f"{method.label}" for method in METHODS), "double quantisation saves", "upcast costs"]
    rows = [
        [
            f"{short_name(row.model_id)} ({row.params / 1e9:.1f}B)",
            *(_figure(row.figures[method.name]) for method in METHODS),
            gib(row.double_quant_saves_bytes),
            _upcast(row),
        ]
        for row in tables.memory
    ]
    notes = [*NOTES[:1], "Upcast: `prepare_model_for_kbit_training`"]
    return f"{_sentence(recipe_line(tables.run))} {' '.join(_sentence(note) for note in notes)}\n\n" + _table(
        heads, rows, numbers=True
    )


def markdown_cards(tables: Tables) -> str:
    """The largest model per card."""
    heads = ["card", *(method.label for method in METHODS)]
    rows = [
        [row.card.name, *(_pair(row.largest[method.name], row.perhaps[method.name]) for method in METHODS)]
        for row in tables.cards
    ]
    return f"{_sentence(NOTES[2])}\n\n{_table(heads, rows)}"


def markdown_advice(tables: Tables) -> str:
    """What common advice says and the figures do not."""
    return "\n".join(f"- {text}" for text in advice_lines(tables))


def render_markdown(tables: Tables) -> str:
    """Both tables and the advice."""
    parts = [markdown_memory(tables), markdown_cards(tables), markdown_advice(tables)]
    return "\n\n".join(part for part in parts if part)


def advice_lines(tables: Tables) -> Iterator[str]:
    """Common advice that these figures contradict, each with its figure."""
    for myth in myths(tables):
        yield f'"{myth.advice}": {myth.figures}' if myth.advice else myth.figures


def csv_rows(tables: Tables) -> list[list[Any]]:
    """Every figure of both tables, a row each, as CSV_HEADS names the fields."""
    rows: list[list[Any]] = []
    for row in tables.memory:
        start = ["memory", row.model_id, row.params, None]
        for name, figure in row.figures.items():
            verdict = "will-not-run" if figure.refused else None
            rows.append([*start, name, "device", figure.device_bytes, figure.basis, verdict])
        rows.append([*start, "qlora-4bit", "double_quant_saves", row.double_quant_saves_bytes, "counted", None])
        rows.append([*start, "qlora-4bit", "upcast_costs", row.upcast_costs_bytes, "closed-form", None])
    for card in tables.cards:
        for kind in (card.largest, card.perhaps):
            for name, model in kind.items():
                if model is not None:
                    start = ["card", model.model_id, model.params, card.card.name]
                    rows.append([*start, name, "device", model.device_bytes, model.basis, model.verdict])
    return rows


def _figure(figure: Figure) -> str:
    if figure.device_bytes is None:
        return "refused"
    digits = 0 if figure.device_bytes >= 1000 << 30 else 1
    return f"{'~' if figure.basis == 'closed-form' else ''}{gib(figure.device_bytes, digits)}"


def _upcast(row: MemoryRow) -> str:
    return "refused" if row.upcast_costs_bytes is None else f"~{gib(row.upcast_costs_bytes, 1)}"


def _mark(model: Largest | None) -> str:
    return "~" if model is not None and model.basis == "closed-form" else ""


def _name(model: Largest | None) -> str:
    return "-" if model is None else short_name(model.model_id)


def _pair(sure: Largest | None, perhaps: Largest | None) -> str:
    def named(model: Largest | None) -> str:
        return "-" if model is None else f"{_mark(model)}{_name(model)} {gib(model.device_bytes, 1)}"

    return named(sure) if perhaps is None else f"{named(sure)} / {named(perhaps)}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    rule = ["---", *["---:" if numbers else "---"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))
