"""An estimate of a run whose strategy is bounded and not played: what is known of a card, and its verdict."""

from __future__ import annotations

from dataclasses import replace

from qlora_planner.catalog import TrainerRow
from qlora_planner.catalog.parallel import PIPELINE
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.parallel.bounds import Bounds, OneCard, bounds_of
from qlora_planner.memory.records import (
    WRAP,
    Basis,
    Component,
    ComponentLine,
    Fit,
    MemoryEstimate,
    Peak,
    Phase,
)
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.units import format_mib

_BEFORE = ("load", "prepare", "adapters", WRAP)
_COUNTED = (Component.QUANTIZATION_CONSTANTS,)


def bounded(alone: MemoryEstimate, placement: Placement, trainer: TrainerRow, budget: Budget) -> MemoryEstimate:
    """`alone`, the same run on one card, as the card of several that needs most has it at the most.

    Its interval reaches down to the least. It fits where the most does, and does not where the least does not;
    between nobody can say.
    """
    levels = {phase.name: phase.allocated_bytes or 0 for phase in alone.phases}
    training = max(size for name, size in levels.items() if name not in _BEFORE)
    bounds = bounds_of(placement, trainer, OneCard(load=levels["load"], training=training), budget.world)
    context = budget.context
    device, floor = bounds.reserved + context.total_bytes, bounds.high + context.total_bytes
    least = bounds.low + context.low_bytes
    on_card = placement.run.load_on != "cpu" and placement.run.parallel != PIPELINE
    most = Phase(
        name="backward", allocated_bytes=bounds.high, reserved_bytes=bounds.reserved, device_bytes=device
    )  # fmt: skip
    phases = tuple(
        most if phase.name == most.name
        else phase if phase.name == "load" and on_card
        else Phase(name=phase.name)
        for phase in alone.phases
    )  # fmt: skip
    return replace(
        alone,
        phases=phases,
        lines=_lines(alone, bounds, budget),
        peak=Peak(
            phase=most.name, allocated_bytes=bounds.high, reserved_bytes=bounds.reserved, device_bytes=device,
            low_bytes=min(least, device), high_bytes=bounds.reserved + context.high_bytes,
        ),
        floor_bytes=floor,
        fit=None if alone.fit is None else _fit(alone.fit, bounds, budget, least, floor, device),
    )  # fmt: skip


def _fit(fit: Fit, bounds: Bounds, budget: Budget, least: int, floor: int, device: int) -> Fit:
    usable = budget.usable_bytes
    headroom = usable - device
    if fit.verdict == "will-not-run":
        return replace(fit, headroom_bytes=headroom)
    verdict = "fits" if floor <= usable else "does-not-fit" if least > usable else "cannot-say"
    reason = (
        f"each card needs between {format_mib(least)} and {format_mib(floor)} of the {format_mib(usable)} a process"
        f" can use: {bounds.why}"
    )
    return replace(fit, verdict=verdict, headroom_bytes=headroom, probability_oom=None, reasons=(reason,))


def _lines(alone: MemoryEstimate, bounds: Bounds, budget: Budget) -> tuple[ComponentLine, ...]:
    """What is known whole, and the rest of the most as what a step holds."""
    context = budget.context
    constants = alone.components[Component.QUANTIZATION_CONSTANTS.value]
    sizes = {
        Component.QUANTIZATION_CONSTANTS: constants,
        Component.ACTIVATIONS: bounds.high - constants,
        Component.ALLOCATOR_SLACK: bounds.reserved - bounds.high,
        Component.CUDA_CONTEXT: context.total_bytes - context.communication_bytes,
        Component.COMMUNICATION: context.communication_bytes,
    }
    why = {
        Component.ACTIVATIONS: f"everything else at the most: {bounds.why}",
        Component.ALLOCATOR_SLACK: "the most that torch may keep cached, between streams that share nothing",
        Component.CUDA_CONTEXT: context.why,
        Component.COMMUNICATION: context.communication_why,
    }
    return tuple(
        ComponentLine(
            component=part, size_bytes=sizes.get(part, 0),
            basis=Basis.COUNTED if part in _COUNTED else Basis.ASSUMED, why=why.get(part, "within the activations"),
        )
        for part in Component
        if part is not Component.COMMUNICATION or context.communication_bytes
    )  # fmt: skip
