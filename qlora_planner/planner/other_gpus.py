"""The same run on other cards: which is the smallest that holds it, and how each does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from qlora_planner.catalog.gpus import remarks
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.record import record
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.risk import verdict_of
from qlora_planner.speed.roofline import cost_of, speed_of


@record
class Standing:
    """One run on one card. Speed and cost are None where the card's rates or price are unknown."""

    card: GpuSpec
    verdict: str
    device_bytes: int
    usable_bytes: int
    probability_oom: float
    tokens_per_s: float | None
    step_s: float | None
    speed_basis: str | None
    usd_per_million_tokens: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "gpu": self.card.name,
            "label": self.card.label,
            "verdict": self.verdict,
            "device_bytes": self.device_bytes,
            "usable_bytes": self.usable_bytes,
            "headroom_bytes": self.usable_bytes - self.device_bytes,
            "probability_oom": self.probability_oom,
            "tokens_per_s": self.tokens_per_s,
            "step_s": self.step_s,
            "speed_basis": None if self.speed_basis is None else str(self.speed_basis),
            "usd_per_million_tokens": self.usd_per_million_tokens,
        }


def fitting_on(answer: MemoryEstimate, here: Budget, card: GpuSpec) -> float:
    """The chance of running out on all of `card`, for a run estimated within `here`: the other card's own context and
    spread."""
    there, more_bytes = _budget_on(answer, here, card)
    return there.probability_oom(answer.floor_bytes + more_bytes, answer.method)


def _budget_on(answer: MemoryEstimate, here: Budget, card: GpuSpec) -> tuple[Budget, int]:
    """The run's budget on `card`, and how many bytes more its CUDA context takes there."""
    there = here.on(card).for_run(answer.run)
    return there, there.context.total_bytes - here.context_for(answer.run).total_bytes


def _verdict_on(answer: MemoryEstimate, card: GpuSpec, chance: float, risk: float) -> str:
    """A card that lacks bfloat16 cannot do a bfloat16 run, however much memory it has."""
    lacks = answer.run.compute_dtype == "bfloat16" and card.bf16 is False
    return "will-not-run" if lacks else verdict_of(chance, risk)


def standing(profile: ModelProfile, answer: MemoryEstimate, card: GpuSpec, here: Budget) -> Standing:
    """How the run of `answer`, estimated within `here`, does on all of `card`.

    A card that lacks bfloat16 cannot do a bfloat16 run: its verdict is `will-not-run`.
    """
    there, more_bytes = _budget_on(answer, here, card)
    chance = there.probability_oom(answer.floor_bytes + more_bytes, answer.method)
    speed = speed_of(profile, answer.run, card, here.calibration, answer.stack)
    return Standing(
        card=card,
        verdict=_verdict_on(answer, card, chance, here.risk),
        device_bytes=answer.peak.device_bytes + more_bytes,
        usable_bytes=there.usable_bytes,
        probability_oom=chance,
        tokens_per_s=speed.tokens_per_s,
        step_s=speed.step_s,
        speed_basis=speed.basis,
        usd_per_million_tokens=cost_of(speed, card).usd_per_million_tokens,
    )


def smallest_card(
    profile: ModelProfile, answer: MemoryEstimate, cards: Iterable[GpuSpec], here: Budget
) -> Standing | None:
    """The card with the least memory on which the run fits; None where none of `cards` does.

    One that needs another torch than pip installs, or whose memory is the host's too, is passed over.
    """
    for card in by_size(cards):
        if card.vendor != "nvidia" or remarks(card, answer.stack):
            continue
        if _verdict_on(answer, card, fitting_on(answer, here, card), here.risk) == "fits":
            return standing(profile, answer, card, here)
    return None


def by_size(cards: Iterable[GpuSpec]) -> Sequence[GpuSpec]:
    """Smallest memory first, then the cheaper, then by name."""
    return sorted(cards, key=lambda card: (card.memory_bytes, card.rent_usd_per_hour or float("inf"), card.name))
