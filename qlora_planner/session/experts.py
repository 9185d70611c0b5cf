"""A run of fused experts that stay in 16 bits and do not fit, with the stack that would hold them in 4."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qlora_planner.errors import InputError
from qlora_planner.units import format_gib

if TYPE_CHECKING:
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.memory.budget import Budget
    from qlora_planner.session.session import Session
    from qlora_planner.spec.model import ModelProfile
    from qlora_planner.spec.run import RunConfig

_TOOL = "axolotl"
_WORDS = {"fits": "", "tight": ", tightly,"}


def with_stack_that_fits(
    estimate: MemoryEstimate, wanted: RunConfig, budget: Budget, profile: ModelProfile, session: Session
) -> MemoryEstimate:
    """The verdict of a run that does not fit, with the run that was asked for in a stack that stores experts in NF4.

    That is said only where the estimate of that run has a verdict of its own that it fits here.
    """
    from qlora_planner.memory.options.resolve import resolve
    from qlora_planner.memory.weights.placement import fuses_experts

    run, fit = estimate.run, estimate.fit
    if fit is None or fit.verdict != "does-not-fit" or run.expert_quant == "nf4" or run.quant not in ("nf4", "fp4"):
        return estimate
    if not fuses_experts(profile):
        return estimate
    other = _elsewhere(resolve(profile, wanted, budget.gpu).run)
    then = _estimated(other, budget, profile, session)
    if then is None or then.verdict not in _WORDS:
        return estimate
    named = "" if other.trainer == run.trainer else f" --trainer {other.trainer}"
    says = (
        f"experts stay in 16 bits here; fits {fit.gpu}{_WORDS[str(then.verdict)]} with --expert-quant nf4{named}"
        f" (axolotl's quantize_moe_experts; Unsloth stores experts so too): peak {format_gib(then.peak.device_bytes)}"
        f" of {format_gib(fit.usable_bytes)} usable, needs at least {format_gib(then.floor_bytes)}"
    )
    return replace(estimate, fit=replace(fit, reasons=(*fit.reasons, says)))


def _elsewhere(run: RunConfig) -> RunConfig:
    """The run in a stack that stores experts in 4 bits: its own trainer where one does, else axolotl's usual one."""
    from qlora_planner.catalog.trainers import expert_stack, trainer_named, trainer_of_format

    if expert_stack(trainer_named(run.trainer)) is not None:
        return run.with_(expert_quant="nf4")
    own = {"packing": False, "activation_offloading": False, "loss_kernel": None}
    return run.with_(
        expert_quant="nf4", trainer=trainer_of_format(_TOOL).name, padding=False if run.packing else run.padding, **own
    )


def _estimated(run: RunConfig, budget: Budget, profile: ModelProfile, session: Session) -> MemoryEstimate | None:
    """By a trace that ships, else by closed forms; None for a run that contradicts itself there."""
    from qlora_planner.memory.estimate import estimate_within
    from qlora_planner.session.traces import tape_for

    try:
        tape = tape_for(profile, run, budget.gpu, profiles=session.profiles, stored_only=True)
        return estimate_within(budget, profile, run, tape=tape)
    except InputError:
        return None
