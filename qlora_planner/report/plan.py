"""The plan of one model on one card as a screen: what to run, what it takes, what each knob would change."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from qlora_planner.catalog.gpus.several import card_words
from qlora_planner.catalog.parallel import FSDP2
from qlora_planner.memory.sweep.tasks import is_task
from qlora_planner.planner.knobs import generates
from qlora_planner.planner.plan import Plan
from qlora_planner.report.estimate import chosen, headline, next_command, problems, render_components
from qlora_planner.report.parts.labels import card_line, cards_line, change, mib, option, recipe, speed_line, value
from qlora_planner.report.parts.plan_parts import advised, compared, given_up, nearest, percent, searched
from qlora_planner.report.parts.theme import Line, Theme, columns
from qlora_planner.units import format_mib, format_size

_PRICES = (44, 10, 8, 6)


def render_plan(plan: Plan, typed: Mapping[str, Any], card: str, theme: Theme, *, explain: bool = False) -> str:
    """The whole screen. `typed` are the run options that were typed, `card` the card as it was."""
    lines = [*headline(plan.estimate, plan.gpu, theme), []]
    if plan.data is not None:
        from qlora_planner.report.parts.epoch_line import epoch_line

        lines = [*epoch_line(plan, theme), *lines]
    if near := list(nearest(plan, typed, theme)):
        lines += [*near, []]
    lines += [*_about(plan, theme), *_changed(plan, typed, theme)]
    sections = [_frontier(plan, theme), _alternatives(plan, theme), _prices(plan, theme), compared(plan, theme)]
    if explain or plan.estimate.verdict != "fits":
        sections.append(given_up(plan, theme))
    if plan.data is not None:
        from qlora_planner.report.data import render_data

        sections.append(iter(render_data(plan.data, theme)))
    if explain:
        sections += [render_components(plan.estimate, theme), chosen(plan.estimate, theme), searched(plan, theme)]
    sections += [advised(plan, theme), problems(plan.estimate, theme)]
    for section in sections:
        if shown := list(section):
            lines += [[], *shown]
    if next_step := list(_next(plan, typed, card, theme)):
        lines += [[], *next_step]
    return theme.render(lines)


def _about(plan: Plan, theme: Theme) -> Iterator[Line]:
    yield from theme.wrap(recipe(plan.run), 6, "run", first_style="dim")
    fit = plan.estimate.fit
    usable = f". A process can use {format_mib(fit.usable_bytes)}." if fit else ""
    yield from theme.wrap(card_line(plan.gpu) + usable, 6, "card", first_style="dim")
    machine = plan.estimate.machine
    if machine is not None and machine.world > 1:
        yield from theme.wrap(cards_line(machine, plan.run.parallel), 6, "cards", first_style="dim")
    if (text := speed_line(plan.estimate.speed)) is not None:
        yield from theme.wrap(f"{text}{_price(plan)}", 6, "speed", first_style="dim")
    elif plan.search:
        rank = f"runs are compared as on {plan.search.ranked_on}"
        bare = plan.gpu.form == "size"
        text = (
            f"unknown for a size alone; {rank}: name your card"
            if bare
            else f"unknown: not all rates of this card are; {rank}"
        )
        yield from theme.wrap(text, 6, "speed", first_style="dim")


def _price(plan: Plan) -> str:
    cost = plan.cost
    if cost is None or cost.usd_per_million_tokens is None:
        return ""
    return f"; about ${cost.usd_per_million_tokens:.3f} per million tokens at ${cost.usd_per_hour:.2f} an hour"


def _changed(plan: Plan, typed: Mapping[str, Any], theme: Theme) -> Iterator[Line]:
    """What was typed and could not be kept: nobody should find that out in the morning."""
    run = plan.run.to_dict()
    for name, wanted in typed.items():
        if name != "stack" and run.get(name) != wanted:
            text = f"{option(name)} {value(run.get(name))} instead of the {value(wanted)} asked for, to fit"
            yield from theme.wrap(text, 9, "changed", first_style="bold yellow")
    if plan.shortened_from is not None:
        sure = "does" if plan.estimate.verdict == "fits" else "may"
        text = f"{plan.shortened_from:,} tokens do not fit so: --seq-len {plan.run.seq_len} is the longest that {sure}"
        yield from theme.wrap(text, 9, "shorter", first_style="bold yellow")


def _frontier(plan: Plan, theme: Theme) -> Iterator[Line]:
    points = [point for point in plan.frontier if point.seq_len]
    if plan.estimate.verdict == "will-not-run":
        return
    if not plan.frontier and plan.estimate.partial:
        text = "longest sequence, other runs that fit, the smallest card: not said, for the reason above"
        yield from theme.wrap(text, style="dim")
        return
    if not plan.frontier and plan.run.parallel == FSDP2:
        text = (
            "longest sequence: not looked for where cards share the weights; `estimate` with --seq-len answers for one"
        )
        yield from theme.wrap(text, style="dim")
        return
    if not plan.frontier and plan.run.shows_images:
        text = "longest sequence: none found with images, of which a training step is recorded for each length"
        yield from theme.wrap(f"{text}; `estimate` with --seq-len records one", style="dim")
        return
    if not plan.frontier and is_task(plan.run):
        text = (
            "longest sequence: not looked for, as no training step of this run is recorded here; `estimate` records one"
        )
        yield from theme.wrap(text, style="dim")
        return
    if not points and generates(plan.run):
        text = f"no completion fits here beside a prompt of {plan.run.prompt_len:,} tokens, at none of these batches"
        yield from theme.wrap(text, style="bold")
        return
    if not points:
        text = "no sequence length fits here, not even 64 tokens at batch 1: the weights alone are too large"
        yield from theme.wrap(text, style="bold")
        return
    first = "longest sequence by batch  "
    shown = points[: max(1, (theme.width - len(first)) // 9)]
    widths, left = (len(first) - 2, *[7] * len(shown)), frozenset({0})
    yield columns([("batch size", "dim"), *((f"{point.batch_size}", "dim") for point in shown)], widths, left)
    yield columns([("longest sequence", ""), *((f"{point.seq_len:,}", "") for point in shown)], widths, left)


def _alternatives(plan: Plan, theme: Theme) -> Iterator[Line]:
    if not plan.alternatives:
        return
    yield [("instead", "dim")]
    for row in plan.alternatives:
        speed = "" if row.speed is None else f", {percent(row.speed)} speed"
        yield from theme.wrap(f"{row.buys} ({'+' if row.bytes > 0 else ''}{format_size(row.bytes)}{speed})", 2)
        yield from theme.wrap(change(row.change), 4, style="cyan")


def _prices(plan: Plan, theme: Theme) -> Iterator[Line]:
    """One row a knob; what the stack refuses is left to `--json`."""
    rows = [row for row in plan.prices if row.refused is None]
    if not rows:
        return
    yield columns(
        [("what a knob changes", "dim"), ("MiB", "dim"), ("speed", "dim"), ("fits", "dim")], _PRICES, frozenset({0})
    )
    for row in rows:
        size = "-" if row.bytes is None else ("+" if row.bytes > 0 else "") + mib(row.bytes)
        fits = "?" if row.fits is None else "yes" if row.fits else "no"
        cells = [
            (theme.cut(change(row.change), _PRICES[0]), ""),
            (size, ""),
            (percent(row.speed), ""),
            (fits, "" if row.fits else "dim"),
        ]
        yield columns(cells, _PRICES, frozenset({0}))
    if any(row.bytes is None for row in rows):
        yield from theme.wrap(
            "- no training step of it is recorded here; `estimate` with its options records one, with [train]",
            2,
            style="dim",
        )


def _of_data(plan: Plan) -> str:
    """The options that name the dataset, where it is one file."""
    if plan.data is None or len(plan.data.summary.paths) != 1:
        return ""
    summary = plan.data.summary
    guess = f" --chars-per-token {summary.chars_per_token:g}" if summary.chars_per_token else ""
    return f"--data {shlex.quote(summary.paths[0])}{guess}"


def _next(plan: Plan, typed: Mapping[str, Any], card: str, theme: Theme) -> Iterator[Line]:
    """How to keep the plan; where nothing fits, the models that do; nothing for a run that will not work."""
    if plan.estimate.verdict == "will-not-run":
        return
    if plan.nearest is not None:
        words = " ".join(filter(None, (card_words(card), _of_data(plan), change(typed), "--adjust")))
        yield from next_command(f"qlora-plan {{}} {words}", plan.model.id, theme, plan.model.path)
        yield from theme.wrap("(takes the nearest run that fits)", 6, style="dim")
        return
    if plan.estimate.verdict == "does-not-fit":
        yield [("next: ", "bold"), (f"qlora-plan {card_words(card)}", "cyan")]
        yield from theme.wrap("(the models that fit on this card)", 6, style="dim")
        return
    run = plan.run.to_dict()
    options = {name: run.get(name, raw) for name, raw in typed.items() if name != "stack"}
    words = " ".join(filter(None, (card_words(card), _of_data(plan), change(options))))
    command = f"qlora-plan {{}} {words} --save plan.yaml"
    yield from next_command(command, plan.model.id, theme, plan.model.path)
    then = "(then `qlora-plan verify plan.yaml` proves it, `qlora-plan train plan.yaml` runs it)"
    yield from theme.wrap(then, 6, style="dim")
