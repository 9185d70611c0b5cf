"""explain-oom: what ran out of memory, when, who held it, and what would have fitted; from a log or a snapshot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from qlora_planner.cli.options import SectionOption, Verb, output_options
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.values import Output, output_from
from qlora_planner.errors import InputError
from qlora_planner.text import plain

if TYPE_CHECKING:
    from qlora_planner.diagnose.oom import OomReport
    from qlora_planner.diagnose.oom.against_plan import Against
    from qlora_planner.exchange.suggestions import Remedy
    from qlora_planner.session.cards import PlannedCard


@dataclass(frozen=True, slots=True)
class _Planned:
    compared: Against
    fixes: list[Remedy]
    verdict: str


@click.command("explain-oom", cls=Verb)
@click.argument("log", metavar="LOG")
@click.option("--plan", "plan", cls=SectionOption, metavar="FILE", help="The plan of the run that failed.")
@output_options()
def command(log: str, plan: str | None, **given: Any) -> int:
    """What LOG (a log, a pasted traceback, a memory snapshot of torch; - for stdin) says about running out of memory.

    Needs no torch, and runs nothing of a snapshot. With --plan, what beat the plan and the smallest change that fits.
    """
    output = output_from(given)
    report = _report(log, output)
    planned = None if plan is None else _against_plan(plan, report, output)
    if output.json:
        answer_json(_document(report, planned))
        return 0
    from qlora_planner.report.oom import render_oom

    if planned is None:
        answer(render_oom(report, output.theme))
    else:
        answer(render_oom(report, output.theme, planned.compared, planned.fixes, planned.verdict))
    return 0


def _report(log: str, output: Output) -> OomReport:
    from qlora_planner.cli.log_file import read_log
    from qlora_planner.diagnose.oom import explain
    from qlora_planner.diagnose.oom.snapshot import looks_like_snapshot, read_snapshot
    from qlora_planner.diagnose.oom.text import HEAD_BYTES, TAIL_BYTES

    file = read_log(log)
    if looks_like_snapshot(file.content):
        return read_snapshot(file.content, plain(log))
    partly = ""
    if file.left_out_bytes:
        partly = f"its first {HEAD_BYTES >> 20} and last {TAIL_BYTES >> 20} MiB were read, of {file.size_bytes >> 20:,}"
        output.warn(f"{plain(log)}: {partly}")
    text = file.content.decode("utf-8", errors="replace")
    try:
        return explain(text)
    except InputError as error:
        raise InputError(f"{plain(log)}: {error}{f' ({partly})' if partly else ''}{_otherwise(text)}") from None


def _otherwise(text: str) -> str:
    """What else the doctor knows of a log that did not run out of memory."""
    from qlora_planner.diagnose.symptom_search import explain_symptom

    findings = explain_symptom(text)
    return (
        f'; it holds another error, `qlora-plan doctor "LINE"` has the fix: {findings[0].message}' if findings else ""
    )


def _against_plan(file: str, report: OomReport, output: Output) -> _Planned | None:
    if report.backend == "MPS" or report.kind in ("host", "kernel"):
        what = "an Apple GPU" if report.backend == "MPS" else "what did not run out on the card"
        output.warn(f"--plan: a plan is for a CUDA card; it says nothing of {what}")
        return None
    from qlora_planner.diagnose.oom.against_plan import against
    from qlora_planner.exchange.plan_file import read_plan
    from qlora_planner.session.check import Estimates, fixes_for

    plan = read_plan(file)
    profile = output.session.model(plan.model_id)
    card = _card(plan.gpu, report, output)
    sizes = {name: size for name, size in profile.dims.items() if isinstance(size, int)}
    estimate = Estimates(output.session.on(card).open(profile)).full(plan.run)
    compared = against(report, estimate, sizes)
    if compared.excess_bytes:
        # What was more than planned will be there again: the change has to make room for it too.
        more = min(card.gpu.memory_bytes - 1, card.reserve_bytes + compared.excess_bytes)
        card = replace(card, reserve_bytes=more)
        estimates = Estimates(output.session.on(card).open(profile))
        return _Planned(compared, fixes_for(estimates.full(plan.run), estimates), estimate.verdict or "")
    return _Planned(
        compared, fixes_for(estimate, Estimates(output.session.on(card).open(profile))), estimate.verdict or ""
    )


def _card(gpu: Any, report: OomReport, output: Output) -> PlannedCard:
    """The plan's card as it was when the run failed: with what others held of it, and with torch's limit.

    A card of another size than the plan's is taken as it is.
    """
    from qlora_planner import session
    from qlora_planner.catalog.gpus import usable_bytes
    from qlora_planner.session.cards import PlannedCard

    name = gpu["name"] if gpu is not None else None
    capacity = report.capacity_bytes
    if name is None and capacity is None:
        raise InputError("--plan: neither the plan nor the message names a card")
    spec = session.load_gpu(str(name), profiles=output.profiles) if name and name != "local" else None
    if spec is None or (capacity is not None and capacity < 0.97 * usable_bytes(spec)[0]):
        if capacity is None:
            raise InputError("--plan: was made for `local` and the message does not tell the card's size")
        output.warn(f"the card that failed has {capacity >> 20:,} MiB, not the plan's")
        spec = session.load_gpu(f"{capacity >> 20}MiB", profiles=output.profiles)
    # CUDA's own total counts the driver's part as used by nobody; what is left of it others hold.
    others = report.others_bytes or 0
    return PlannedCard(
        gpu=spec, reserve_bytes=min(others, spec.memory_bytes - 1), cap_bytes=report.allowed_bytes, asked=spec.name
    )


def _document(report: OomReport, planned: _Planned | None) -> dict[str, Any]:
    from qlora_planner.report.parts.oom_words import advice, headline

    return {
        **report.to_dict(),
        "summary": headline(report),
        "advice": list(advice(report)),
        "plan": None
        if planned is None
        else {
            **planned.compared.to_dict(),
            "verdict": planned.verdict or None,
            "fixes": [fix.to_dict() for fix in planned.fixes],
        },
    }
