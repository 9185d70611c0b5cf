"""A plan as a report to hand on: what to run, what it takes, what a knob costs, and where each number comes from."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from qlora_planner import __version__
from qlora_planner.catalog.gpus.several import card_words
from qlora_planner.memory.records import Phase
from qlora_planner.planner.plan import Plan
from qlora_planner.report.estimate import NOT_TRACED, is_traced, verdict_sentences
from qlora_planner.report.pages.component_chart import BAR_COLUMNS, component_chart, text_bar
from qlora_planner.report.pages.document import Block, Code, Heading, Paragraph, Plot, Table, to_html, to_markdown
from qlora_planner.report.pages.svg import Part, bars, curve
from qlora_planner.report.parts.labels import (
    card_name,
    chance,
    change,
    component_label,
    gib,
    mib,
    option,
    recipe,
    speed_line,
    value,
)
from qlora_planner.report.parts.plan_parts import percent
from qlora_planner.report.parts.theme import VERDICT_WORDS
from qlora_planner.units import GIB, format_gib

_BASES = (
    ("counted", "tensors of the real model class, built without weights"),
    ("derived", "recorded from the installed model code and simulated through torch's allocator"),
    ("calibrated", "measured on a card"),
    ("assumed", "nobody measured it for this case; the interval is wide"),
)


def render_share(plan: Plan, typed: Mapping[str, Any], card: str, *, html: bool) -> str:
    """The report as HTML or Markdown. `typed` are the run options that were typed, `card` the card as it was."""
    title = f"{plan.model.id} on {card_name(plan.gpu)}"
    blocks = list(blocks_of(plan, typed, card))
    return to_html(title, blocks) if html else to_markdown(title, blocks)


def blocks_of(plan: Plan, typed: Mapping[str, Any], card: str) -> Iterator[Block]:
    """Every section in order."""
    yield from verdict_blocks(plan)
    if plan.estimate.verdict != "will-not-run":
        yield Heading("Run it")
        yield Code(command_line(plan, typed, card))
    yield Heading("Memory")
    yield from _memory(plan)
    yield from _frontier(plan)
    yield from _prices(plan)
    yield from _compared(plan)
    yield from _origin(plan)


def command_line(plan: Plan, typed: Mapping[str, Any], card: str) -> str:
    """The recommended run, word for word as it would be estimated, then trained."""
    run = plan.run.to_dict()
    options = {name: run.get(name, raw) for name, raw in {**typed, **plan.options}.items() if name != "stack"}
    stack = " ".join(f"--stack {name}={version}" for name, version in plan.run.stack.items())
    words = " ".join(part for part in (card_words(card), _quoted(options), stack) if part)
    model = shlex.quote(plan.model.id)
    return (
        f"qlora-plan estimate {model} {words} --explain\nqlora-plan {model} {words} --save plan.yaml\n"
        "qlora-plan train plan.yaml"
    )


def _quoted(options: Mapping[str, Any]) -> str:
    parts = []
    for name, raw in options.items():
        if isinstance(raw, bool) or raw is None:
            parts += [] if raw is None else [change({name: raw})]
        else:
            parts.append(f"{option(name)} {shlex.quote(str(raw))}")
    return " ".join(parts)


def verdict_blocks(plan: Plan) -> Iterator[Block]:
    answer, fit = plan.estimate, plan.estimate.fit
    peak = answer.peak
    if fit is not None and fit.verdict == "cannot-say":
        yield Paragraph(f"{VERDICT_WORDS[fit.verdict].capitalize()}: {'; '.join(fit.reasons)}.")
    elif fit is not None and fit.verdict == "will-not-run":
        yield Paragraph(f"Will not run: {' '.join(verdict_sentences(answer, fit))}.")
    elif fit is not None:
        yield Paragraph(
            f"{VERDICT_WORDS[fit.verdict].capitalize()}: {format_gib(peak.device_bytes)} at its peak of"
            f" {format_gib(fit.usable_bytes)} that a process can use; 90 % interval {gib(peak.low_bytes)} to"
            f" {format_gib(peak.high_bytes)}; chance of running out {chance(fit.probability_oom)}."
        )
    if not is_traced(answer):
        yield Paragraph(f"All figures {NOT_TRACED}; the interval is wide.")
    yield Paragraph(f"The run: {recipe(plan.run)}.")
    if (speed := speed_line(answer.speed)) is not None:
        yield Paragraph(f"Speed: {speed}.")
    for problem in answer.problems:
        fix = f" ({problem.fix})" if problem.fix else ""
        yield Paragraph(f"{'Refused' if problem.blocking else 'Note'}: {problem.message}{fix}")


def _memory(plan: Plan) -> Iterator[Block]:
    answer = plan.estimate
    usable = answer.fit.usable_bytes if answer.fit else None
    yield component_chart(answer)
    phases = [phase for phase in answer.phases if phase.device_bytes is not None]
    yield _phases(phases, usable)
    yield Table(
        ("phase", "allocated MiB", "reserved MiB", "device MiB"),
        tuple(
            (phase.name, mib(phase.allocated_bytes), mib(phase.reserved_bytes), mib(phase.device_bytes))
            for phase in phases
        ),
        frozenset({1, 2, 3}),
    )


def _phases(phases: list[Phase], usable: int | None) -> Plot:
    """Allocated, reserved and device bytes of each phase, one inside the other."""
    rows, lines = [], []
    whole = max([usable or 0, *(phase.device_bytes or 0 for phase in phases)])
    for phase in phases:
        levels = [0, phase.allocated_bytes or 0, phase.reserved_bytes or 0, phase.device_bytes or 0]
        names = ("allocated", "reserved beyond", "context")
        parts = [
            Part(
                label=f"{name}: {format_gib(after - before)}", start=before / GIB,
                length=max(0, after - before) / GIB, color=color,
            )
            for name, before, after, color in zip(names, levels, levels[1:], (0, 2, 3), strict=False)
        ]  # fmt: skip
        rows.append((phase.name, parts, gib(phase.device_bytes)))
        figures = " / ".join(gib(level) for level in levels[1:])
        lines.append(f"{phase.name:10} {text_bar(phase.device_bytes or 0, whole):{BAR_COLUMNS}} {figures} GiB")
    if usable is not None:
        lines.append(f"{'usable':10} {text_bar(usable, whole):{BAR_COLUMNS}} {gib(usable)} GiB")
    svg = bars(
        "Memory by phase", rows, edge=None if usable is None else usable / GIB,
        edge_label=f"usable {format_gib(usable)}", legend=(("allocated", 0), ("reserved", 2), ("device", 3)),
    )  # fmt: skip
    return Plot(svg, "Peaks of each phase: allocated / reserved / device", "\n".join(lines))


def _frontier(plan: Plan) -> Iterator[Block]:
    points = [(row.batch_size, row.seq_len) for row in plan.frontier if row.seq_len]
    if not plan.frontier:  # nobody says
        return
    yield Heading("Longest sequence by batch")
    if not points:
        yield Paragraph("No sequence length fits, not even 64 tokens at batch 1.")
        return
    svg = curve(
        "Longest sequence by batch",
        points,
        x_label="sequences per micro-batch",
        y_label="tokens per sequence",
        log=True,
    )
    top = max(length for _, length in points)
    text = "\n".join(f"batch {batch:<4} {text_bar(length, top):{BAR_COLUMNS}} {length:>8,}" for batch, length in points)
    yield Plot(svg, "The longest sequence that fits at each batch, with all else as in the run (ranked)", text)


def _prices(plan: Plan) -> Iterator[Block]:
    rows = tuple(
        (
            change(row.change),
            ("+" if row.bytes > 0 else "") + mib(row.bytes),
            percent(row.speed),
            {True: "yes", False: "no", None: "-"}[row.fits],
            row.note or "",
        )
        for row in plan.prices
        if row.bytes is not None
    )
    if rows:
        yield Heading("What a knob changes")
        yield Table(("change", "MiB", "speed", "fits", "note"), rows, frozenset({1, 2}))


def _compared(plan: Plan) -> Iterator[Block]:
    if not plan.compared:
        return
    rows = tuple(
        (
            row.label,
            VERDICT_WORDS.get(row.verdict, row.verdict),
            gib(row.floor_bytes, 1),
            "-" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}",
            "-" if row.usd_per_million_tokens is None else f"{row.usd_per_million_tokens:.3f}",
            change(row.change or {}),
        )
        for row in plan.compared
    )
    yield Heading("Other cards")
    heads = ("the best run on", "verdict", "needs GiB", "tokens/s", "$ per million tokens", "with")
    yield Table(heads, rows, frozenset({2, 3, 4}))


def _origin(plan: Plan) -> Iterator[Block]:
    yield Heading("Where each number comes from")
    yield Table(
        ("component", "bytes", "known how", "why"),
        tuple(
            (component_label(line.component.value), f"{line.size_bytes:,}", line.basis.value, line.why)
            for line in plan.estimate.lines
        ),
        frozenset({1}),
    )
    yield Table(("known how", "means"), _BASES)
    chosen = tuple(
        (option(name), value(plan.run.to_dict().get(name)), why) for name, why in plan.estimate.resolved.items()
    )
    if chosen:
        yield Table(("chosen", "is", "because"), chosen)
    if plan.search:
        yield Paragraph(f"{plan.search.candidates:,} candidates, ranked as on {plan.search.ranked_on}.")
    stack = ", ".join(f"{name} {version}" for name, version in plan.stack.items())
    yield Paragraph(f"qlora-planner {__version__}, for {stack}.")
