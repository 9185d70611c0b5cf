"""On which card a token of the best run costs least."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from qlora_planner.errors import InputError
from qlora_planner.evidence.calibration import Calibration
from qlora_planner.memory.budget import Budget
from qlora_planner.planner.candidate_memory import CandidateFactory
from qlora_planner.planner.objectives import OBJECTIVES
from qlora_planner.planner.search import search
from qlora_planner.planner.search_space import fixed_options, search_space
from qlora_planner.planner.sweeps import Sweep
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.roofline import Rates


def priced(card: GpuSpec) -> bool:
    """Whether a token on the card has a price: that of the card and its rates are known."""
    return card.rent_usd_per_hour is not None and card.vendor == "nvidia" and Rates.of(card, "bfloat16") is not None


def cheapest(
    profile: ModelProfile,
    run: RunConfig,
    fixed: Collection[str] | None,
    cards: Iterable[GpuSpec],
    sweep: Sweep | None,
    calibration: Calibration | None,
    *,
    untraced: bool = True,
) -> GpuSpec | None:
    """The card with a price on which the fastest run that fits costs least a token, by rank; None where none holds it.

    With `untraced` off closed forms say what fits only where nothing traced does. Cards without a known price or known
    rates cannot be compared and are left out.
    """
    prices: list[tuple[float, str, GpuSpec]] = []
    named = fixed_options(run, fixed)
    for card in cards:
        if card.rent_usd_per_hour is None or not priced(card):
            continue
        space = search_space(profile, run, named, whole=False)
        factory = CandidateFactory.of(profile, Budget.of(card, calibration=calibration), sweep)
        try:
            ranking = search(factory, run, space, OBJECTIVES["throughput"], pace_on=card, untraced=untraced)
        except InputError:  # this card's stack refuses all that is left open
            continue
        best = next(ranking.best())
        if best.fits:
            prices.append((card.rent_usd_per_hour / best.pace, card.name, card))
    return min(prices)[2] if prices else None
