"""Answers as pieces of HTML for a notebook: the verdict, the memory bar by component, and the table that matters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qlora_planner.memory.audit.audit import Audit
from qlora_planner.memory.audit.reasons import role_label
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.planner.plan import Plan
from qlora_planner.planner.survey.survey import SurveyRow
from qlora_planner.report.estimate import partial_sentences, verdict_sentences
from qlora_planner.report.pages.component_chart import component_chart
from qlora_planner.report.pages.document import Block, Code, Paragraph, Table, to_fragment
from qlora_planner.report.pages.plan_report import command_line, verdict_blocks
from qlora_planner.report.parts.labels import card_line, card_name, change, gib, mib, recipe
from qlora_planner.report.parts.plan_parts import percent
from qlora_planner.report.parts.theme import VERDICT_WORDS
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.units import format_gib, format_params

_MOST_ROWS = 40


def estimate_html(estimate: MemoryEstimate, gpu: GpuSpec | None) -> str:
    """One run: its verdict, or its peak without a card, and what is alive at the peak."""
    model = estimate.model.id
    if estimate.fit is None:
        title = f"{model}: {format_gib(estimate.peak.device_bytes)} at its peak"
    else:
        on = card_name(gpu) if gpu else estimate.fit.gpu
        title = f"{VERDICT_WORDS[estimate.fit.verdict]}: {model} on {on}"
    return to_fragment(title, list(_estimate_blocks(estimate)))


def _estimate_blocks(estimate: MemoryEstimate) -> Iterator[Block]:
    peak, fit = estimate.peak, estimate.fit
    if fit is None:
        yield Paragraph(f"90 % interval {gib(peak.low_bytes)} to {format_gib(peak.high_bytes)}.")
    for sentence in partial_sentences(estimate) if fit is None else verdict_sentences(estimate, fit):
        yield Paragraph(sentence)
    yield Paragraph(f"The run: {recipe(estimate.run)}.")
    yield component_chart(estimate)
    for problem in estimate.problems:
        fix = f" ({problem.fix})" if problem.fix else ""
        yield Paragraph(f"{'Refused' if problem.blocking else 'Note'}: {problem.message}{fix}")


def plan_html(plan: Plan, typed: Mapping[str, Any], card: str) -> str:
    """The recommended run: verdict, commands, what is alive at the peak, and what each knob would change."""
    blocks: list[Block] = [*verdict_blocks(plan)]
    if plan.estimate.verdict != "will-not-run":
        blocks.append(Code(command_line(plan, typed, card)))
    blocks.append(component_chart(plan.estimate))
    rows = tuple(
        (change(row.change), mib(row.bytes), percent(row.speed)) for row in plan.prices if row.bytes is not None
    )
    if rows:
        blocks.append(Table(("what a knob changes", "MiB", "speed"), rows, frozenset({1, 2})))
    return to_fragment(f"{plan.model.id} on {card_name(plan.gpu)}", blocks)


def survey_html(rows: Sequence[SurveyRow], gpu: GpuSpec) -> str:
    """The largest models that fit; `to_frame` has every row."""
    fitting = [row for row in rows if row.verdict in ("fits", "tight")]
    cells = tuple(
        (
            row.model_id, format_params(row.params), VERDICT_WORDS[row.verdict], gib(row.peak_bytes),
            f"{row.longest_seq_len:,}" if row.longest_seq_len else "-",
        )
        for row in fitting[:_MOST_ROWS]
    )  # fmt: skip
    heads = ("model", "size", "verdict", "peak GiB", "longest at batch 1")
    shown = f"; the largest {_MOST_ROWS} of them" if len(fitting) > _MOST_ROWS else ""
    return to_fragment(
        f"What fits on {card_name(gpu)}",
        [
            Paragraph(f"{card_line(gpu)}. {len(fitting)} of {len(rows)} models fit{shown}."),
            Table(heads, cells, frozenset({1, 3, 4})),
        ],
    )


def audit_html(audit: Audit) -> str:
    """Every kind of tensor and why it is stored as it is."""
    rows = tuple(
        (
            f"{audit.bits}-bit" if row.quantized else "kept", role_label(row.role), f"{row.tensors:,}",
            mib(row.loaded_bytes), row.why,
        )
        for row in audit.rows
    )  # fmt: skip
    blocks: list[Block] = [Paragraph(audit.headline)]
    if audit.checkpoint is not None:
        blocks.append(Paragraph(audit.checkpoint.message))
    blocks.append(Table(("stored as", "what", "tensors", "loaded MiB", "why"), rows, frozenset({2, 3})))
    return to_fragment(f"What of {audit.model['id']} becomes {audit.bits}-bit", blocks)


def text_html(screen: str) -> str:
    """A screen as it is, its first line as the title."""
    title, _, rest = screen.partition("\n")
    return to_fragment(title.strip(), [Code(rest.strip("\n"))])
