"""The audit of a model as a screen: one headline, what is 4-bit, what is not and why, what preparing would add."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_planner.memory.audit.audit import Audit, AuditRow
from qlora_planner.memory.audit.reasons import role_label
from qlora_planner.report.parts.labels import count, gib
from qlora_planner.report.parts.theme import Line, Theme, columns
from qlora_planner.units import format_size

_WIDTHS, _LEFT = (20, 8, 8, 8, 9, 9), frozenset({0})
# Norms and biases are many rows of nothing; they are one line until somebody asks.
_SMALL = 64 << 20


def render_audit(audit: Audit, theme: Theme, *, explain: bool = False) -> str:
    """The whole screen. With `explain`, every row with the names of its tensors."""
    share = audit.quantized_params / max(1, int(audit.model["params"]))
    style = "bold green" if share > 0.5 else "bold red" if share < 0.1 else "bold yellow"
    if audit.checkpoint is not None and not audit.checkpoint.works:
        style = "bold red"
    lines = theme.wrap(audit.headline, style=style)
    if audit.checkpoint is not None:
        lines += theme.wrap(audit.checkpoint.message, 12, "checkpoint", first_style="bold yellow")
        if audit.checkpoint.fix:
            lines += theme.wrap(audit.checkpoint.fix, 12, "      fix:", style="cyan", first_style="dim")
        if not audit.checkpoint.works:
            lines += theme.wrap("a bf16 copy of it would load as follows", 12, style="dim")
    lines += [[], *_table(audit, explain), [], *_reasons(audit, theme, explain)]
    lines += [[], *_prepare(audit, theme)]
    if not explain:
        lines += [[], *theme.wrap("sizes in GiB as the allocator counts them; --explain names tensors", style="dim")]
    return theme.render(lines)


def _shown(audit: Audit, explain: bool) -> tuple[list[AuditRow], list[AuditRow]]:
    """Rows to show, and those that are summed up."""
    if explain:
        return list(audit.rows), []
    large = [row for row in audit.rows if row.quantized or row.reason == "tied" or row.prepared_bytes >= _SMALL]
    kept = {id(row) for row in large}
    small = [row for row in audit.rows if id(row) not in kept]
    return (large, small) if len(small) > 1 else (list(audit.rows), [])


def _table(audit: Audit, explain: bool) -> Iterator[Line]:
    heads = ("stored as", "tensors", "params", "loaded", f"if {audit.bits}-bit", "prepared")
    yield columns([(head, "dim") for head in heads], _WIDTHS, _LEFT)
    shown, small = _shown(audit, explain)
    for row in shown:
        yield columns(_cells(row, audit.bits), _WIDTHS, _LEFT)
    if small:
        cells = ["everything else", f"{sum(row.tensors for row in small):,}", count(sum(row.params for row in small))]
        cells += [_gib(sum(row.loaded_bytes for row in small)), "-", _gib(sum(row.prepared_bytes for row in small))]
        yield columns([(cell, "dim") for cell in cells], _WIDTHS, _LEFT)
    total = ["all", f"{sum(row.tensors for row in audit.rows):,}", count(int(audit.model["params"]))]
    total += [_gib(audit.loaded_bytes), _gib(audit.loaded_bytes - audit.cost_bytes), _gib(audit.prepared_bytes)]
    yield columns([(cell, "bold") for cell in total], _WIDTHS, _LEFT)


def _cells(row: AuditRow, bits: int) -> list[tuple[str, str]]:
    mark = f"{bits}-bit" if row.quantized else "tied" if row.reason == "tied" else "kept"
    style = "green" if row.quantized else "yellow" if row.cost_bytes >= _SMALL else ""
    name = f"{mark:<6}{role_label(row.role)}"[: _WIDTHS[0]]
    could_be = _gib(row.quantized_bytes) if row.quantized_bytes is not None else "-"
    texts = (name, f"{row.tensors:,}", count(row.params), _gib(row.loaded_bytes), could_be, _gib(row.prepared_bytes))
    return [(text, style) for text in texts]


def _gib(size_bytes: int) -> str:
    return gib(size_bytes, 3 if size_bytes < 1 << 30 else 2)


def _reasons(audit: Audit, theme: Theme, explain: bool) -> Iterator[Line]:
    """Why, costliest first."""
    rows = [row for row in _shown(audit, explain)[0] if explain or not row.quantized]
    for row in sorted(rows, key=lambda row: (-row.cost_bytes, -row.loaded_bytes)):
        cost = f"; costs {format_size(row.cost_bytes)} more than {audit.bits}-bit" if row.cost_bytes > 0 else ""
        style = "yellow" if row.cost_bytes >= _SMALL else ""
        yield from theme.wrap(f"{row.why}{cost}", 15, f"{role_label(row.role)}  ", first_style=style)
        if explain:
            yield from theme.wrap(", ".join(row.names), 15, style="dim")


def _prepare(audit: Audit, theme: Theme) -> Iterator[Line]:
    added = audit.prepared_bytes - audit.loaded_bytes
    text = (
        "prepare_model_for_kbit_training would cast what is kept in 16 bits to float32:"
        f" {format_size(audit.loaded_bytes)} becomes {format_size(audit.prepared_bytes)}, {format_size(added)} more"
    )
    largest = max(audit.rows, key=lambda row: row.prepare_cost_bytes)
    if largest.prepare_cost_bytes > added / 2:
        text += f", mostly {role_label(largest.role)}"
    yield from theme.wrap(f"{text}. Trainers of today do not call it; --upcast plans for one that does.")
