"""The same run on other cards: which is the smallest that holds it, and how each does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from qlora_planner.catalog.cuda import cublas_workspace_bytes
from qlora_planner.catalog.gpus import remarks
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.memory.sweep.validity import kernel_class
from qlora_planner.record import record, replaced
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.risk import verdict_of
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.roofline import cost_of
from qlora_planner.speed.several import speed_within

# The estimate of a run on all of a card; None where no trace of it ships.
PlayedOn = Callable[[RunConfig, GpuSpec], MemoryEstimate | None]


def _not_played(_run: RunConfig, _card: GpuSpec) -> MemoryEstimate | None:
    return None


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
    speed = speed_within(there, profile, answer.run, answer.stack)
    return Standing(
        card=card,
        verdict=_verdict_on(answer, card, chance, here.risk),
        device_bytes=answer.peak.device_bytes + more_bytes,
        usable_bytes=there.usable_bytes,
        probability_oom=chance,
        tokens_per_s=speed.tokens_per_s,
        step_s=speed.step_s,
        speed_basis=speed.basis,
        usd_per_million_tokens=cost_of(speed, card, cards=there.world).usd_per_million_tokens,
    )


def smallest_card(
    profile: ModelProfile,
    answer: MemoryEstimate,
    cards: Iterable[GpuSpec],
    here: Budget,
    played_on: PlayedOn = _not_played,
) -> Standing | None:
    """The card with the least memory on which the run fits; None where none of `cards` does, or none that is no larger
    than the one on which it is known to fit.

    One that needs another torch than pip installs, or whose memory is the host's too, is passed over. A floor is worked
    out finely for the card that it is asked for alone, so that where memory is just enough, and on a card that runs
    other kernels or gives cuBLAS another workspace, the run is estimated on that card by `played_on`.
    """
    fits_here = answer.verdict == "fits"
    least = answer.peak.allocated_bytes or 0  # that torch was seen to need at the least, on any card
    for card in by_size(cards):
        if card.vendor != "nvidia" or remarks(card, answer.stack):
            continue
        budget, more_bytes = _budget_on(answer, here, card)
        if fits_here and budget.usable_bytes > here.usable_bytes and card.name != here.card.name:
            continue  # the card itself may come later: by size on the box, not by what a process can use
        verdict = _verdict_on(answer, card, fitting_on(answer, here, card), here.risk)
        holds_all = budget.usable_bytes >= answer.peak.device_bytes + more_bytes
        if verdict == "fits" and (answer.method != TRACED or (_alike(card, here.card) and holds_all)):
            return standing(profile, answer, card, here)
        if verdict == "will-not-run":
            continue
        at_least = budget.probability_oom(least + budget.context.total_bytes, answer.method)
        if answer.method != TRACED or verdict_of(at_least, here.risk) != "fits":
            continue
        again = answer if card.name == here.card.name and fits_here else played_on(answer.run, card)
        if again is not None and again.verdict == "fits":
            chance = budget.probability_oom(again.floor_bytes, again.method)
            return replaced(
                standing(profile, answer, card, here),
                verdict="fits", device_bytes=again.peak.device_bytes, probability_oom=chance,
            )  # fmt: skip
        if again is None and verdict == "fits":
            return standing(profile, answer, card, here)
        if again is not None:
            least = max(least, again.floor_bytes - budget.context.total_bytes)
    return None


def _alike(card: GpuSpec, other: GpuSpec) -> bool:
    """Whether a run takes the same bytes of both, as far as kernels and cuBLAS's workspaces go."""
    workspaces = {cublas_workspace_bytes(each.compute_capability) for each in (card, other)}
    return kernel_class(card) == kernel_class(other) and len(workspaces) == 1


def by_size(cards: Iterable[GpuSpec]) -> Sequence[GpuSpec]:
    """Smallest memory first, then the cheaper, then by name."""
    return sorted(cards, key=lambda card: (card.memory_bytes, card.rent_usd_per_hour or float("inf"), card.name))
