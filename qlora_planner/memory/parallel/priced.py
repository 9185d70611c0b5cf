"""What warnings about several cards cost on the run at hand: their messages with this model's figures."""

from __future__ import annotations

from dataclasses import replace

from qlora_planner.memory.budget import Budget
from qlora_planner.memory.parallel.host import load_peak_bytes
from qlora_planner.memory.records import WRAP, MemoryEstimate, Problem
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.units import format_gib, format_mib

# bitsandbytes quantises on the CPU at this pace: the 6,979,321,856 weights of an 8B's layers in 60 s on 8 threads,
# measured beside two H200s. Other processors take other times, so that minutes are told as about so many.
_WEIGHTS_PER_S = 6_979_321_856 / 60


def with_prices(answer: MemoryEstimate, placement: Placement, budget: Budget) -> MemoryEstimate:
    """`answer` with what loading and storing 4-bit weights otherwise would save or cost, in its own words."""
    problems = tuple(_priced(problem, answer, placement, budget) for problem in answer.problems)
    return answer if problems == answer.problems else replace(answer, problems=problems)


def _priced(problem: Problem, answer: MemoryEstimate, placement: Placement, budget: Budget) -> Problem:
    packed = [weight for weight in placement.weights if weight.scheme is not None and not weight.group.tied_with]
    if problem.code == "storage-whole":
        whole = sum(weight.weight_bytes * weight.group.count for weight in packed)
        more = whole - whole // budget.world
        return replace(problem, message=f"{problem.message}: {format_mib(more)} more on each")
    if problem.code != "loads-whole":
        return problem
    levels = {phase.name: phase.allocated_bytes or 0 for phase in answer.phases}
    most = max(levels.get("load", 0), levels.get(WRAP, 0))
    host = load_peak_bytes(placement.profile, placement.run.with_(load_on="cpu"), budget.machine)
    seconds = sum(weight.numel * weight.group.count for weight in packed) / _WEIGHTS_PER_S
    says = f"{problem.message}: {format_mib(most)} before the first step"
    if answer.fit is not None and most > answer.fit.usable_bytes:
        says += f", more than the {format_mib(answer.fit.usable_bytes)} of a card"
    if host is not None:
        minutes = max(1, round(seconds / 60))
        says += f". On the CPU it takes {format_gib(host)} of a node's memory and about {minutes} min of quantising"
    return replace(problem, message=says)
