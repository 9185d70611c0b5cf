"""An estimate from a traced run: every phase as the allocator plays it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from qlora_planner.catalog.cuda import ContextRow
from qlora_planner.catalog.trainers import REFERENCE
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.memory.allocator.caching import OutOfMemory
from qlora_planner.memory.breakdown import Breakdown, highest
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.explanations import before_training, communication_words, counted_words
from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.memory.records import WRAP, Basis, Component, ComponentLine, Phase
from qlora_planner.memory.replay.player import COMPONENTS
from qlora_planner.memory.replay.simulate import SimulatedRun, floor_bytes, remembered_run
from qlora_planner.memory.weights.loading import PhasePeak
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import PREFILL, Tape
from qlora_planner.units import format_mib

_COUNTED = (
    Component.QUANTIZED_WEIGHTS, Component.QUANTIZATION_CONSTANTS, Component.UNQUANTIZED_WEIGHTS,
    Component.ADAPTERS, Component.GRADIENTS, Component.OPTIMIZER_STATES,
)  # fmt: skip


def traced_breakdown(
    profile: ModelProfile,
    resolution: Resolution,
    tape: Tape,
    budget: Budget,
    orders: Sequence[Sequence[Tape]] = (),
    refines: bool = True,
) -> Breakdown:
    """Everything an estimate shows, from the tape of this run played through the allocator.

    Each of `orders` is a sequence of batches of other widths that may come before; the one that reserves most counts.

    Near what is usable within the `budget`, which is the run's own, the floor is worked out more finely where that
    `refines`; without, it may be said too large, which is never a run that fits too many. Under torch's own limit a run
    that gets through gives back what it has cached; of one that does not, all is shown.
    """
    run, context, workspace_bytes, limit_bytes = (
        resolution.run, budget.context, budget.workspace_bytes, budget.cap_bytes,
    )  # fmt: skip
    tried = [
        (remembered_run(profile, resolution, tape, workspace_bytes, before=order, world=budget.world), order)
        for order in orders or ((),)
    ]
    played, before = max(tried, key=lambda pair: pair[0].reserved)
    shown = played
    if limit_bytes is not None and played.reserved > limit_bytes:
        with suppress(OutOfMemory):
            shown = remembered_run(profile, resolution, tape, workspace_bytes, limit_bytes, before, budget.world)
    asleep = budget.vllm_bytes(run) if run.vllm_enable_sleep_mode else 0
    phases = _phases(shown, context, asleep)
    peak = highest(phases)
    full = context.total_bytes
    return Breakdown(
        load=played.load,
        prepare=played.prepare,
        adapters=played.adapters,
        # A reference whose figures are precomputed has its pass while the trainer is made, and cuBLAS keeps its buffer.
        ready_bytes=played.training[REFERENCE if run.precompute_ref_log_probs else "adapters"].peak.live,
        phases=phases,
        peak=peak,
        lines=_lines(run, shown, peak, context),
        # Loading is over before the libraries' kernels join the context: what works at the peak bounds the floor.
        floor_bytes=min(
            max(
                full
                + floor_bytes(
                    profile,
                    resolution,
                    tape,
                    workspace_bytes,
                    played,
                    None if budget.usable is None else budget.usable_bytes - full,
                    before,
                    budget.world,
                    refines,
                ),
                full + played.training[PREFILL].peak.allocated + asleep if asleep else 0,
            ),
            peak.device_bytes or 0,
        ),
        trainable_params=played.state.count,
        paged_bytes=played.state.paged,
        offloaded_bytes=played.offloaded,
        method=TRACED,
    )


def _phases(played: SimulatedRun, context: ContextRow, asleep_bytes: int = 0) -> tuple[Phase, ...]:
    """`asleep_bytes` is what vLLM wakes up to beside the trainer, which empties its cache first."""
    born = context.first_tensor_bytes
    full = context.total_bytes

    def phase(name: str, peak: PhasePeak | None, beside: int) -> Phase:
        if peak is None:
            return Phase(name=name)
        awake = asleep_bytes if name == PREFILL else 0
        reserved = peak.allocated + awake if awake else peak.reserved
        figures = Phase(
            name=name,
            allocated_bytes=peak.allocated + awake,
            reserved_bytes=reserved,
            device_bytes=reserved + beside,
        )
        return replace(figures, components=_sizes(played, figures, context))

    cast = played.training["adapters"].peak
    added = PhasePeak(
        live=cast.live,
        allocated=max(played.adapters.allocated, cast.allocated),
        reserved=max(played.adapters.reserved, cast.reserved),
    )
    rollout = [PREFILL] if PREFILL in played.training else []
    compared = [REFERENCE] if REFERENCE in played.training else []
    training = (*rollout, "forward", "loss", *compared, "backward", "optimizer")
    kept = played.training["optimizer"].peak
    saved = PhasePeak(live=kept.live, allocated=kept.live, reserved=kept.reserved)
    if "save" in played.training:
        saved = played.training["save"].peak
    return (
        phase("load", played.load, born),
        phase("prepare", played.prepare, born),
        phase("adapters", added, born),
        *(phase(WRAP, played.training[name].peak, born) for name in (WRAP,) if name in played.training),
        *(phase(name, played.training[name].peak if name in played.training else None, full) for name in training),
        phase("eval", played.training["eval"].peak if "eval" in played.training else None, full),
        # Adapters are copied to the host one by one: nothing is added on the device, but where they are gathered.
        phase("save", saved, full),
    )


def _sizes(played: SimulatedRun, phase: Phase, context: ContextRow) -> dict[Component, int]:
    """What a phase's device bytes are made of; slack is what torch reserves beyond what is in use."""
    if phase.name in ("load", "prepare", "adapters"):
        # A model that the host holds until it is wrapped has nothing on the card.
        sizes = before_training(played.static, phase) if played.load.live else {}
        beside = context.first_tensor_bytes
    else:
        name = "optimizer" if phase.name == "save" and "save" not in played.training else phase.name
        sizes = dict(zip(COMPONENTS, played.training[name].components, strict=True))
        beside = context.first_tensor_bytes if phase.name == WRAP else context.total_bytes
    communication = sizes.pop(Component.COMMUNICATION, 0) + context.communication_bytes
    sizes[Component.CUDA_CONTEXT] = beside - context.communication_bytes
    sizes[Component.ALLOCATOR_SLACK] = 0
    if communication:
        sizes[Component.COMMUNICATION] = communication
    sizes[Component.ALLOCATOR_SLACK] = (phase.device_bytes or 0) - sum(sizes.values())
    return sizes


def _lines(run: RunConfig, played: SimulatedRun, peak: Phase, context: ContextRow) -> tuple[ComponentLine, ...]:
    sizes = _sizes(played, peak, context)
    words = counted_words(run, played.static, played.state)
    words |= {
        Component.CHECKPOINTS: f"what forward keeps between layers for {run.tokens:,} tokens, traced",
        Component.ACTIVATIONS: "alive in the layer at the peak, traced from the model's own code",
        Component.LOGITS_AND_LOSS: "alive of the head and the loss at the peak, traced",
        Component.WORKSPACE: "buffers that cuBLAS keeps, and scratch of the optimizer; before training, a tensor"
        " beside its cast or quantised form",
        Component.ALLOCATOR_SLACK: f"torch reserves {format_mib(peak.reserved_bytes)} for"
        f" {format_mib(peak.allocated_bytes)} in use: simulated block by block",
        Component.CUDA_CONTEXT: context.why,
        Component.COMMUNICATION: communication_words(context, run.parallel),
    }
    return tuple(
        ComponentLine(component=part, size_bytes=sizes.get(part, 0), basis=_basis(part, context), why=words[part])
        for part in Component
        if part is not Component.COMMUNICATION or part in sizes
    )


def _basis(part: Component, context: ContextRow) -> Basis:
    if part in _COUNTED:
        return Basis.COUNTED
    if part is Component.COMMUNICATION:
        return Basis.CALIBRATED if context.communication_measured else Basis.ASSUMED
    if part is Component.CUDA_CONTEXT:
        return Basis.CALIBRATED if context.measured else Basis.ASSUMED
    return Basis.DERIVED
