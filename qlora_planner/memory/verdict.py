"""From a floor and the budget of a card to a verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from qlora_planner.memory.budget import Budget
from qlora_planner.memory.records import Fit, MemoryEstimate, Problem
from qlora_planner.spec.risk import format_risk, verdict_of
from qlora_planner.units import format_mib


def fit(budget: Budget, device_bytes: int, floor_bytes: int, method: str, problems: tuple[Problem, ...]) -> Fit | None:
    """The verdict of a run, whose figures were had by `method`, within a budget; None where that has no card."""
    if budget.usable is None:
        return None
    usable_bytes, why = budget.usable
    chance = budget.probability_oom(floor_bytes, method)
    refused = [problem for problem in problems if problem.blocking]
    if refused:
        verdict = "will-not-run"
        reasons = _reasons(refused)
    else:
        verdict = verdict_of(chance, budget.risk)
        most = "" if verdict == "fits" else f", at most {format_risk(budget.risk)} passes"
        reasons = [
            f"needs at least {format_mib(floor_bytes)} of the {format_mib(usable_bytes)} a process can use"
            f" ({why}); chance of running out {chance:.1%}{most}"
        ]
    return Fit(
        gpu=budget.card.name,
        capacity_bytes=budget.card.memory_bytes,
        usable_bytes=usable_bytes,
        headroom_bytes=usable_bytes - device_bytes,
        verdict=verdict,
        probability_oom=None if refused else chance,
        reasons=tuple(reasons),
        risk=budget.risk,
        vllm_bytes=budget.held_bytes,
    )


def with_problems(estimate: MemoryEstimate, problems: Iterable[Problem], without: Iterable[str] = ()) -> MemoryEstimate:
    """`estimate` with problems that whoever asks for the run brings, and without those of the codes in `without`.

    One that blocks makes a verdict `will-not-run`.
    """
    gone, more = set(without), tuple(problems)
    kept = tuple(problem for problem in estimate.problems if problem.code not in gone)
    refused = [problem for problem in more if problem.blocking]
    fit = estimate.fit
    if fit is not None and refused:
        reasons = (*(fit.reasons if fit.verdict == "will-not-run" else ()), *_reasons(refused))
        fit = replace(fit, verdict="will-not-run", probability_oom=None, reasons=reasons)
    return replace(estimate, problems=(*kept, *more), fit=fit)


def _reasons(refused: Iterable[Problem]) -> list[str]:
    return [f"{problem.message}; use {problem.fix}" for problem in refused]
