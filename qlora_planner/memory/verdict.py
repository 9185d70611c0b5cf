"""From a floor and the budget of a card to a verdict."""

from __future__ import annotations

from qlora_planner.memory.budget import Budget
from qlora_planner.memory.records import Fit, Problem
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
        reasons = [f"{problem.message}; use {problem.fix}" for problem in refused]
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
    )
