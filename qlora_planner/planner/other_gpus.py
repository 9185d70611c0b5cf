"""The same run on other cards: which is the smallest that holds it, and how each does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from qlora_planner.catalog.cuda import ContextRow
from qlora_planner.catalog.gpus import remarks
from qlora_planner.evidence.calibration import Calibration
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.memory.verdict import (
    context_of,
    distribution,
    probability_over,
    usable_with_reason,
    verdict_of,
    with_libraries,
)
from qlora_planner.record import record
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
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


def fitting_on(answer: MemoryEstimate, here: GpuSpec | None, card: GpuSpec, known: Calibration | None) -> float:
    """The chance of running out on `card`, for a run estimated `here`: the other card's own context and spread."""
    now, more = _context_on(answer, here, card, known)
    around = distribution(answer.floor_bytes + more, answer.method, now, known)
    return probability_over(usable_with_reason(card, 0, None, now)[0], around)


def _context_on(
    answer: MemoryEstimate, here: GpuSpec | None, card: GpuSpec, known: Calibration | None
) -> tuple[ContextRow, int]:
    """The run's CUDA context on `card`, and how many bytes more it takes than `here`."""
    was, now = (with_libraries(context_of(gpu, known), answer.run) for gpu in (here, card))
    return now, now.first_tensor_bytes + now.kernels_bytes - was.first_tensor_bytes - was.kernels_bytes


def _verdict_on(answer: MemoryEstimate, card: GpuSpec, chance: float) -> str:
    """A card that lacks bfloat16 cannot do a bfloat16 run, however much usable_with_reason it has."""
    lacks = answer.run.compute_dtype == "bfloat16" and card.bf16 is False
    return "will-not-run" if lacks else verdict_of(chance)


def standing(
    profile: ModelProfile,
    answer: MemoryEstimate,
    card: GpuSpec,
    calibration: Calibration | None,
    here: GpuSpec | None = None,
) -> Standing:
    """How the run of `answer`, estimated on the card `here`, does on `card`.

    A card that lacks bfloat16 cannot do a bfloat16 run: its verdict is `will-not-run`.
    """
    chance = fitting_on(answer, here, card, calibration)
    now, more = _context_on(answer, here, card, calibration)
    speed = speed_of(profile, answer.run, card, calibration, answer.stack)
    return Standing(
        card=card,
        verdict=_verdict_on(answer, card, chance),
        device_bytes=answer.peak.device_bytes + more,
        usable_bytes=usable_with_reason(card, 0, None, now)[0],
        probability_oom=chance,
        tokens_per_s=speed.tokens_per_s,
        step_s=speed.step_s,
        speed_basis=speed.basis,
        usd_per_million_tokens=cost_of(speed, card).usd_per_million_tokens,
    )


def smallest_card(
    profile: ModelProfile,
    answer: MemoryEstimate,
    cards: Iterable[GpuSpec],
    calibration: Calibration | None,
    here: GpuSpec | None = None,
) -> Standing | None:
    """The card with the least memory on which the run fits; None where none of `cards` does.

    One that needs another torch than pip installs, or whose memory is the host's too, is passed over.
    """
    for card in by_size(cards):
        if card.vendor != "nvidia" or remarks(card, answer.stack):
            continue
        if _verdict_on(answer, card, fitting_on(answer, here, card, calibration)) == "fits":
            return standing(profile, answer, card, calibration, here)
    return None


def by_size(cards: Iterable[GpuSpec]) -> Sequence[GpuSpec]:
    """Smallest memory first, then the cheaper, then by name."""
    return sorted(cards, key=lambda card: (card.memory_bytes, card.rent_usd_per_hour or float("inf"), card.name))
