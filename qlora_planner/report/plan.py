"""The plan of one model on one card as a screen: what to run, what it takes, what each knob would change."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from qlora_planner.planner.plan import Plan
from qlora_planner.report.estimate import chosen, headline, next_command, problems, render_components
from qlora_planner.report.theme import Line, Theme, columns
from qlora_planner.report.words import card_line, change, mib, option, recipe, speed_line, value
from qlora_planner.units import format_mib, format_size

_BYTES = re.compile(r"(-?\d+) bytes")


def render_plan(plan: Plan, asked: Mapping[str, Any], card: str, theme: Theme, *, explain: bool = False) -> str:
    """The whole screen. `asked` are the run options that were typed, `card` the card as it was."""
    lines = [*headline(plan.estimate, plan.gpu, theme), [], *_about(plan, theme)]
    lines += _changed(plan, asked, theme)
    sections = [_frontier(plan, theme), _alternatives(plan, theme), _prices(plan, theme)]
    if explain:
        sections += [render_components(plan.estimate, theme), chosen(plan.estimate, theme)]
    sections.append(problems(plan.estimate, theme))
    for section in sections:
        if found := list(section):
            lines += [[], *found]
    lines += [[], *_next(plan, asked, card, theme)]
    return theme.render(lines)


def _about(plan: Plan, theme: Theme) -> Iterator[Line]:
    yield from theme.wrap(recipe(plan.run), 6, "run", first_style="dim")
    fit = plan.estimate.fit
    usable = f". A process can use {format_mib(fit.usable_bytes)}." if fit else ""
    yield from theme.wrap(card_line(plan.gpu) + usable, 6, "card", first_style="dim")
    if (text := speed_line(plan.estimate.speed)) is not None:
        yield from theme.wrap(text, 6, "speed", first_style="dim")


def _changed(plan: Plan, asked: Mapping[str, Any], theme: Theme) -> Iterator[Line]:
    """What was typed and could not be kept: nobody should find that out in the morning."""
    run = plan.run.to_dict()
    for name, wanted in asked.items():
        if name != "stack" and run.get(name) != wanted:
            text = f"{option(name)} {value(run.get(name))} instead of the {value(wanted)} asked for, to fit"
            yield from theme.wrap(text, 9, "changed", first_style="bold yellow")


def _frontier(plan: Plan, theme: Theme) -> Iterator[Line]:
    points = [point for point in plan.frontier if point.get("seq_len")]
    if not points:
        text = "no sequence length fits here, not even 64 tokens at batch 1: the weights alone are too large"
        yield from theme.wrap(text, style="bold")
        return
    first = "longest sequence by batch  "
    shown = points[: max(1, (theme.width - len(first)) // 9)]
    widths, left = (len(first) - 2, *[7] * len(shown)), frozenset({0})
    yield columns([("batch size", "dim"), *((f"{point['batch_size']}", "dim") for point in shown)], widths, left)
    yield columns([("longest sequence", ""), *((f"{point['seq_len']:,}", "") for point in shown)], widths, left)


def _alternatives(plan: Plan, theme: Theme) -> Iterator[Line]:
    if not plan.alternatives:
        return
    yield [("instead", "dim")]
    for row in plan.alternatives:
        changes = row.get("change")
        name = change(changes) if isinstance(changes, Mapping) else str(row.get("name", "other"))
        costs = f"; costs {_amount(row['costs'])}" if row.get("costs") else ""
        yield from theme.wrap(f"{_amount(row.get('buys', ''))}{costs}", 30, f"  {name}  ", first_style="cyan")


def _prices(plan: Plan, theme: Theme) -> Iterator[Line]:
    if not plan.prices:
        return
    yield columns([("what a knob changes", "dim"), ("MiB", "dim"), ("speed", "dim")], (44, 10, 10), frozenset({0}))
    for row in plan.prices:
        changes = row.get("change")
        name = change(changes) if isinstance(changes, Mapping) else str(row.get("knob") or row.get("option") or "")
        size, speed = row.get("bytes"), row.get("speed")
        cells = [
            (theme.cut(name, 44), ""),
            (("+" if size > 0 else "") + mib(size) if isinstance(size, int) else "-", ""),
            (f"{100 * (speed - 1):+.0f} %" if isinstance(speed, float) else str(speed or "-"), ""),
        ]
        yield columns(cells, (44, 10, 10), frozenset({0}))


def _amount(raw: object) -> str:
    """Bytes in a unit that can be read; words as they are."""
    if isinstance(raw, int):
        return format_size(raw)
    return _BYTES.sub(lambda match: format_size(int(match[1])), str(raw))


def _next(plan: Plan, asked: Mapping[str, Any], card: str, theme: Theme) -> Iterator[Line]:
    """The run as a command that shows all of its memory; where nothing fits, the models that do."""
    if plan.estimate.verdict == "does-not-fit":
        yield [("next: ", "bold"), (f"qlora-plan --gpu {shlex.quote(card)}", "cyan")]
        yield from theme.wrap("(the models that fit on this card)", 6, style="dim")
        return
    run = plan.run.to_dict()
    options = {name: run[name] for name in ("seq_len", "batch_size", "grad_accum") if run[name] != _DEFAULTS[name]}
    options |= {name: run.get(name, raw) for name, raw in asked.items() if name != "stack"}
    words = f"--gpu {shlex.quote(card)} {change(options)}".strip()
    yield from next_command(f"qlora-plan estimate {{}} {words}", str(plan.model["id"]), theme)


_DEFAULTS = {"seq_len": 2048, "batch_size": 1, "grad_accum": 1}
