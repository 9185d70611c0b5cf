"""An estimate by closed forms: for a run that was not traced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qlora_planner.catalog.cuda import ContextRow
from qlora_planner.catalog.parallel import DDP
from qlora_planner.memory.allocator.expandable import is_expandable
from qlora_planner.memory.breakdown import Breakdown, highest
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.closed_form.activations import most
from qlora_planner.memory.closed_form.components import component_lines
from qlora_planner.memory.closed_form.static_peaks import MemoryTerms, memory_terms, static_peaks_of
from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.memory.parallel.ddp import Wrapping, ddp_wrapping
from qlora_planner.memory.records import WRAP, Phase
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import PREFILL

# Reserved over allocated while training: measured from 1.01 to 1.33 with a median of 1.06 over 66 runs on an H200;
# with expandable segments a limit of 1.02 x the allocated peak was enough in three cases of three.
RESERVED_OVER_ALLOCATED, RESERVED_OVER_ALLOCATED_EXPANDABLE = 1.06, 1.02


def closed_form_breakdown(profile: ModelProfile, resolution: Resolution, budget: Budget) -> Breakdown:
    """Everything an estimate shows, from the profile's counts and the closed forms."""
    run = resolution.run
    parts = memory_terms(static_peaks_of(profile, resolution, budget.workspace_bytes), resolution, budget.context)
    phases, peak = phases_of(run, parts)
    communication = 0
    if run.parallel == DDP:
        wrapping = ddp_wrapping(Placement(profile, run), resolution.trainer)
        phases = _wrapped(phases, base_bytes(run, parts), wrapping, parts.context)
        peak = highest(phases)
        communication = wrapping.most_passing if peak.name == WRAP else wrapping.kept_bytes
        communication *= peak.name not in ("load", "prepare", "adapters")
    return Breakdown(
        load=parts.load,
        prepare=parts.prepare,
        adapters=parts.adapters,
        ready_bytes=base_bytes(run, parts)
        - parts.static.cast_back
        + (parts.workspace if run.precompute_ref_log_probs else 0),
        phases=phases,
        peak=peak,
        lines=component_lines(run, parts, peak, communication),
        floor_bytes=floor_of(phases, parts.context),
        trainable_params=parts.state.count,
        paged_bytes=parts.state.paged,
        offloaded_bytes=_offloaded(run, parts),
        method=parts.method,
    )


def allocated_levels(run: RunConfig, parts: MemoryTerms) -> dict[str, Any]:
    """Allocated bytes of the training phases at their highest: ints, or arrays where the activations are."""
    acts, state = parts.acts, parts.state
    base = base_bytes(run, parts)
    earlier = state.gradients if run.grad_accum > 1 else 0
    kept = base + parts.workspace + acts.checkpoints + acts.all_layers
    generates = parts.trainer.generation is not None
    return {
        **({PREFILL: base + parts.workspace + state.optimizer + acts.generation} if generates else {}),
        "forward": kept + acts.layer // 2,
        "loss": kept + state.optimizer + acts.logits + earlier,
        # The head comes first in backward: of one micro-batch, no adapter has its gradient yet.
        "backward": kept + state.optimizer + most(acts.layer + state.gradients, acts.logits + earlier),
        "optimizer": base + parts.workspace + state.gradients + state.optimizer + state.step_temporaries,
    }


def base_bytes(run: RunConfig, parts: MemoryTerms) -> int:
    """What is alive before a step: weights, and adapters in the dtype that they train in."""
    return parts.adapters.live - (0 if run.method == "full" else parts.static.adapters - parts.state.weights)


def phases_of(run: RunConfig, parts: MemoryTerms) -> tuple[tuple[Phase, ...], Phase]:
    """All phases, and the one with the highest device figure."""
    state, context = parts.state, parts.context
    born = context.first_tensor_bytes
    full = context.total_bytes
    factor = RESERVED_OVER_ALLOCATED_EXPANDABLE if is_expandable(run.alloc_conf) else RESERVED_OVER_ALLOCATED
    base = base_bytes(run, parts)
    # Adapters in float32 stand beside their 16-bit copies while a trainer casts them, one tensor at a time.
    training = allocated_levels(run, parts)
    phases = [
        Phase(name="load", allocated_bytes=parts.load.allocated, reserved_bytes=parts.load.reserved,
              device_bytes=parts.load.reserved + born),
        Phase(name="prepare") if parts.prepare is None else
        Phase(name="prepare", allocated_bytes=parts.prepare.allocated, reserved_bytes=parts.prepare.reserved,
              device_bytes=parts.prepare.reserved + born),
        Phase(name="adapters", allocated_bytes=parts.adapters.allocated, reserved_bytes=parts.adapters.reserved,
              device_bytes=parts.adapters.reserved + born),
    ]  # fmt: skip
    for name, allocated in training.items():
        reserved = max(int(allocated * factor), parts.adapters.live)
        phases.append(
            Phase(name=name, allocated_bytes=allocated, reserved_bytes=reserved, device_bytes=reserved + full)
        )
    phases.append(_eval_phase(run, parts, base, factor, full))
    phases.append(Phase(name="save", allocated_bytes=base + parts.workspace + state.optimizer,
                        reserved_bytes=base + parts.workspace + state.optimizer,
                        device_bytes=base + parts.workspace + state.optimizer + full))  # fmt: skip
    return tuple(phases), highest(phases)


def _wrapped(phases: tuple[Phase, ...], base: int, wrapping: Wrapping, context: ContextRow) -> tuple[Phase, ...]:
    """The phases of a run that is wrapped before its first step: what stays is alive in all that follow."""
    kept, before = wrapping.kept_bytes, ("load", "prepare", "adapters")
    allocated = base + max(wrapping.most_passing, kept)
    wrap = Phase(
        name=WRAP, allocated_bytes=allocated, reserved_bytes=allocated,
        device_bytes=allocated + context.first_tensor_bytes,
    )  # fmt: skip
    later = [
        phase if phase.device_bytes is None else
        replace(
            phase, allocated_bytes=(phase.allocated_bytes or 0) + kept,
            reserved_bytes=max((phase.reserved_bytes or 0) + kept, allocated),
            device_bytes=max((phase.reserved_bytes or 0) + kept, allocated) + context.total_bytes,
        )
        for phase in phases if phase.name not in before
    ]  # fmt: skip
    return (*(phase for phase in phases if phase.name in before), wrap, *later)


def floor_of(phases: tuple[Phase, ...], context: ContextRow) -> int:
    """The smallest device total on which the run works: the cache given back, the context kept."""
    highest = max(phase.allocated_bytes or 0 for phase in phases)
    return int(highest * RESERVED_OVER_ALLOCATED_EXPANDABLE) + context.total_bytes


def _eval_phase(run: RunConfig, parts: MemoryTerms, base: int, factor: float, full: int) -> Phase:
    """Evaluation keeps nothing for backward, but returns whole logits in float32."""
    if run.eval_batch_size is None:
        return Phase(name="eval")
    ratio = run.eval_batch_size / run.batch_size
    allocated = base + parts.workspace + parts.state.optimizer + int(max(parts.acts.layer, parts.acts.logits) * ratio)
    reserved = int(allocated * factor)
    return Phase(name="eval", allocated_bytes=allocated, reserved_bytes=reserved, device_bytes=reserved + full)


def _offloaded(run: RunConfig, parts: MemoryTerms) -> int | None:
    if run.checkpoint_offload and not run.activation_offloading:
        return int(parts.acts.offloaded)
    return (parts.acts.offloaded or parts.acts.all_layers) if run.activation_offloading else 0
