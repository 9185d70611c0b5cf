"""The best run by each other objective, and on each other card."""

from __future__ import annotations

from qlora_planner.errors import InputError, NothingRunsError
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.planner.around.partial import judged, verdict_of
from qlora_planner.planner.candidate_memory import Scale
from qlora_planner.planner.neighbours import pace_ratio
from qlora_planner.planner.objectives import OBJECTIVES, Objective, find_objective
from qlora_planner.planner.planner import Planner
from qlora_planner.planner.records import Alternative, OtherGpu
from qlora_planner.planner.search import Choice
from qlora_planner.planner.search_space import fixed_options
from qlora_planner.record import replaced
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.speed.roofline import Rates, cost_of
from qlora_planner.speed.several import speed_within

# How the weights are stored: another length or rank is asked of them as they are.
_STORED = ("method", "quant", "double_quant")


def elsewhere(planner: Planner, here: Choice, card: GpuSpec) -> OtherGpu:
    """The best run of the same model and objective on another card: figures None where nothing fits there.

    It fits by its own estimate where its trace ships; elsewhere it is ranked.
    """
    request = planner.request
    there = replaced(request, budget=request.budget.on(card), pace_on=card if Rates.of(card, None) else request.pace_on)
    other = Planner.of(
        planner.profile, there, planner.run, planner.factory.sweep, planner.tape_of, planner.orders_of,
        planner.shipped_of, planner.traces,
    )  # fmt: skip
    objective, fixed = find_objective(request.objective), fixed_options(request.run, request.fixed)
    refused = OtherGpu(
        gpu=card.name, label=card.label, usable_bytes=other.budget.usable_bytes,
        usd_per_hour=None if card.rent_usd_per_hour is None else card.rent_usd_per_hour * other.budget.world,
    )  # fmt: skip
    try:
        ranking = other.rank(planner.run, fixed, objective, whole=False)
    except InputError:  # the stack refuses everything left open on that card
        return refused
    best, played = next(ranking.best()), None
    if best.traced and best.fits:
        settled = other.first_that_fits(ranking, other.played)
        best, played = settled or (replaced(best, fits=False), None)
    shown = here.run.to_dict()
    resolved = resolve(planner.profile, best.run, card).run
    row = replaced(
        refused,
        verdict=verdict_of(other, resolved, played, fits=best.fits), run=resolved.to_dict(), played=played is not None,
        floor_bytes=best.floor_bytes if played is None else played.floor_bytes,
        change={name: value for name, value in best.run.to_dict().items() if value != shown[name]},
    )  # fmt: skip
    speed = speed_within(other.budget, planner.profile, resolved, planner.profile.counted)
    if not best.fits or speed.tokens_per_s is None:
        return row
    return replaced(
        row, tokens_per_s=speed.tokens_per_s, step_s=speed.step_s, speed_basis=str(speed.basis),
        usd_per_million_tokens=cost_of(speed, card, cards=other.budget.world).usd_per_million_tokens,
    )  # fmt: skip


def alternatives(planner: Planner, chosen: Choice, floor_bytes: int, scale: Scale) -> list[Alternative]:
    """The best run of each other objective, where it differs; `floor_bytes` is what the chosen one took.

    It fits by its own estimate where its trace ships; elsewhere it is ranked.
    """
    rows: list[Alternative] = []
    fixed = fixed_options(planner.request.run, planner.request.fixed)
    shown = chosen.run.to_dict()
    for objective in OBJECTIVES.values():
        if objective.name == planner.request.objective or objective.cards:
            continue
        if objective.lengths and {"prompt_len", "completion_len"} <= fixed:
            continue  # together they are the sequence
        # Another length or rank is asked of the weights as they are stored now; quality is about how they are.
        kept = {} if objective.name == "quality" else {name: shown[name] for name in _STORED}
        try:
            around = planner.rank(planner.run.with_(**kept), fixed | kept.keys(), objective, whole=False)
        except NothingRunsError:  # not with this objective
            continue
        other = next(around.best(), None)
        if other is None or not other.fits or not _gains(objective, other, chosen):
            continue
        taken = scale.on(other.floor_bytes, other.traced)
        if other.traced:
            settled = planner.first_that_fits(around, planner.played)
            if settled is None or judged(planner, settled[1]).verdict != "fits":
                continue
            other, taken = settled[0], settled[1].floor_bytes
        change = {name: value for name, value in other.run.to_dict().items() if value != shown[name]}
        if not change or not _gains(objective, other, chosen):
            continue
        rows.append(
            Alternative(
                objective=objective.name, change=change, buys=objective.says, bytes=taken - floor_bytes,
                speed=pace_ratio(other.pace, other.run, chosen.pace, chosen.run),
            )
        )  # fmt: skip
    return rows


def _gains(objective: Objective, other: Choice, chosen: Choice) -> bool:
    """Whether a run that is best by another objective is better by it than the one recommended."""
    if objective.lengths:
        return other.run.seq_len > chosen.run.seq_len
    if objective.name == "quality":
        return (other.quality, other.run.rank) > (chosen.quality, chosen.run.rank)
    return other.run.rank > chosen.run.rank if objective.ranks else other.pace > chosen.pace
