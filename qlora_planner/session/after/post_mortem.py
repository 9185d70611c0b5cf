"""What ran out of memory, from a log or a snapshot, and against the plan of the run: what beat it, and what fits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qlora_planner.diagnose.log_file import read_log
from qlora_planner.errors import InputError
from qlora_planner.record import record
from qlora_planner.session.cards import LOCAL, PlannedCard, number_of_plan
from qlora_planner.session.views.planned import attribute_of, shown
from qlora_planner.text import plain

if TYPE_CHECKING:
    from qlora_planner.diagnose.oom import OomReport
    from qlora_planner.diagnose.oom.against_plan import Against
    from qlora_planner.exchange.suggestions import Remedy
    from qlora_planner.report.parts.theme import Theme
    from qlora_planner.session.session import Session


@record
class BesidePlan:
    """How the failed run stands to its plan: what was more than planned, the changes by which the next one fits, and
    the plan's own verdict ("" where it had none). `strategy` and `world` are of a plan for several cards, whose figures
    are each card's; None and 1 on one."""

    compared: Against
    fixes: tuple[Remedy, ...]
    verdict: str
    strategy: str | None = None
    world: int = 1


@record
class OomAnswer:
    """An OomReport, and what it says against a plan where one was given."""

    report: OomReport
    planned: BesidePlan | None = None

    def __getattr__(self, name: str) -> Any:
        return attribute_of(self, name)

    __str__ = shown

    def render(self, theme: Theme) -> str:
        """The screen of `qlora-plan explain-oom`."""
        from qlora_planner.report.oom import render_oom

        if self.planned is None:
            return render_oom(self.report, theme)
        planned = self.planned
        whose = None if planned.strategy is None else (planned.strategy, planned.world)
        return render_oom(self.report, theme, planned.compared, list(planned.fixes), planned.verdict, whose)

    def _repr_html_(self) -> str:
        from qlora_planner.report.pages.notebook import text_html

        return text_html(str(self))

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/oom/1`."""
        from qlora_planner.report.parts.oom_words import advice, headline

        planned = self.planned
        return {
            **self.report.to_dict(),
            "summary": headline(self.report),
            "advice": list(advice(self.report)),
            "plan": None
            if planned is None
            else {
                **planned.compared.to_dict(),
                "verdict": planned.verdict or None,
                **({} if planned.strategy is None else {"parallel": planned.strategy, "cards": planned.world}),
                "fixes": [fix.to_dict() for fix in planned.fixes],
            },
        }


def explain_oom(session: Session, log: str, plan: str | None) -> OomAnswer:
    """See `Session.explain_oom`."""
    report = _report(session, log)
    return OomAnswer(report=report, planned=None if plan is None else _beside_plan(session, plan, report))


def _report(session: Session, log: str) -> OomReport:
    from qlora_planner.diagnose.oom import explain
    from qlora_planner.diagnose.oom.snapshot import looks_like_snapshot, read_snapshot
    from qlora_planner.diagnose.oom.text import HEAD_BYTES, TAIL_BYTES

    file = read_log(log)
    if looks_like_snapshot(file.content):
        return read_snapshot(file.content, plain(log))
    partly = ""
    if file.left_out_bytes:
        partly = f"its first {HEAD_BYTES >> 20} and last {TAIL_BYTES >> 20} MiB were read, of {file.size_bytes >> 20:,}"
        session.tell(f"{plain(log)}: {partly}")
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


def _beside_plan(session: Session, file: str, report: OomReport) -> BesidePlan | None:
    if report.backend == "MPS" or report.kind in ("host", "kernel"):
        what = "an Apple GPU" if report.backend == "MPS" else "what did not run out on the card"
        session.tell(f"--plan: a plan is for a CUDA card; it says nothing of {what}")
        return None
    from qlora_planner.diagnose.oom.against_plan import against
    from qlora_planner.exchange.plan_file import read_plan
    from qlora_planner.session.check import Estimates, fixes_for

    plan = read_plan(file)
    profile = session.model(plan.model_id)
    card = _card_that_failed(session, plan.gpu, report)
    sizes = {name: size for name, size in profile.dims.items() if isinstance(size, int)}
    estimates = Estimates(session.on(card).open(profile))
    estimate = estimates.full(plan.run)
    compared = against(report, estimate, sizes)
    needed = estimate
    if compared.excess_bytes:
        # What was more than planned will be there again: the change has to make room for it too.
        more = min(card.gpu.memory_bytes - 1, card.reserve_bytes + compared.excess_bytes)
        estimates = Estimates(session.on(replace(card, reserve_bytes=more)).open(profile))
        needed = estimates.full(plan.run)
    return BesidePlan(
        compared=compared, fixes=tuple(fixes_for(needed, estimates)), verdict=estimate.verdict or "",
        strategy=estimate.run.parallel, world=card.world,
    )  # fmt: skip


def _card_that_failed(session: Session, gpu: Any, report: OomReport) -> PlannedCard:
    """The plan's card as it was when the run failed: with what others held of it, and with torch's limit.

    A card of another size than the plan's is taken as it is.
    """
    from qlora_planner.catalog.gpus import usable_bytes

    name = gpu["name"] if gpu is not None else None
    capacity = report.capacity_bytes
    if name is None and capacity is None:
        raise InputError("--plan: neither the plan nor the message names a card")
    spec = session.gpu(str(name)) if name and name != LOCAL else None
    if spec is None or (capacity is not None and capacity < 0.97 * usable_bytes(spec)[0]):
        if capacity is None:
            raise InputError("--plan: was made for `local` and the message does not tell the card's size")
        session.tell(f"the card that failed has {capacity >> 20:,} MiB, not the plan's")
        spec = session.gpu(f"{capacity >> 20}MiB")
    # CUDA's own total counts the driver's part as used by nobody; what is left of it others hold.
    others = report.others_bytes or 0
    count, nodes = number_of_plan(gpu or {})
    return PlannedCard(
        gpu=spec, reserve_bytes=min(others, spec.memory_bytes - 1), cap_bytes=report.allowed_bytes, asked=spec.name,
        count=count, nodes=nodes,
    )  # fmt: skip
