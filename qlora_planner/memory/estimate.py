"""estimate: the memory of exactly one run, by phase and by component."""

from __future__ import annotations

from qlora_planner.catalog.cuda import ContextRow, cublas_workspace_bytes
from qlora_planner.hardware import GpuSpec
from qlora_planner.memory.components import component_lines
from qlora_planner.memory.expandable import is_expandable
from qlora_planner.memory.groundwork import Parts, assemble, build_groundwork
from qlora_planner.memory.records import (
    HostBytes,
    MemoryEstimate,
    Peak,
    Phase,
    StaticBytes,
)
from qlora_planner.memory.resolve import resolve
from qlora_planner.memory.verdict import fit, interval, room, spread
from qlora_planner.profile import ModelProfile
from qlora_planner.run import RunConfig

# Reserved over allocated while training: measured from 1.01 to 1.33 with a median of 1.06 over 66 runs on an H200;
# with expandable segments a limit of 1.02 x the allocated peak was enough in three cases of three.
RESERVED_OVER_ALLOCATED, RESERVED_OVER_ALLOCATED_EXPANDABLE = 1.06, 1.02


def estimate(
    profile: ModelProfile,
    run: RunConfig,
    gpu: GpuSpec | None = None,
    *,
    reserve_bytes: int = 0,
    cap_bytes: int | None = None,
) -> MemoryEstimate:
    """The memory of `run` on `profile`, with a verdict when a card is given.

    `reserve_bytes` is held back for a desktop or other processes; `cap_bytes` is torch's own per-process limit.
    Raises InputError for options that contradict each other or name modules that are not there.
    """
    resolution = resolve(profile, run, gpu)
    ground = build_groundwork(profile, resolution, cublas_workspace_bytes(gpu.compute_capability if gpu else None))
    parts = assemble(ground, resolution.run, resolution.stack, gpu)
    phases, peak_phase = phases_of(resolution.run, parts)
    lines = component_lines(resolution.run, parts, peak_phase)
    floor = floor_of(phases, parts.context)
    device = peak_phase.device_bytes or 0
    low, high = interval(device, spread(device, parts.basis, parts.context))
    return MemoryEstimate(
        model={
            "id": profile.id, "model_type": profile.model_type, "params": profile.params,
            "trainable_params": parts.state.count,
            "profile": {"source": profile.source, "versions": dict(profile.versions)},
        },
        run=resolution.run,
        resolved=resolution.why,
        stack=resolution.stack,
        static=StaticBytes(
            after_load=parts.load.live,
            after_prepare=(parts.prepare or parts.load).live,
            after_adapters=parts.adapters.live,
        ),
        phases=phases,
        lines=lines,
        peak=Peak(
            phase=peak_phase.name, allocated_bytes=peak_phase.allocated_bytes or 0,
            reserved_bytes=peak_phase.reserved_bytes or 0, device_bytes=peak_phase.device_bytes or 0,
            low_bytes=low, high_bytes=high,
        ),
        floor_bytes=floor,
        host=HostBytes(
            paged_bytes=parts.state.paged,
            offloaded_bytes=_offloaded(resolution.run, parts),
            load_peak_bytes=None,
        ),
        fit=None
        if gpu is None
        else fit(
            gpu, room(gpu, reserve_bytes, cap_bytes, parts.context), device, floor,
            spread(floor, parts.basis, parts.context), resolution.problems,
        ),
        problems=resolution.problems,
    )  # fmt: skip


def phases_of(run: RunConfig, parts: Parts) -> tuple[tuple[Phase, ...], Phase]:
    """All phases, and the one with the highest device figure."""
    acts, state, context = parts.acts, parts.state, parts.context
    born = context.first_tensor_bytes
    full = born + context.kernels_bytes
    factor = RESERVED_OVER_ALLOCATED_EXPANDABLE if is_expandable(run.alloc_conf) else RESERVED_OVER_ALLOCATED
    base = parts.adapters.live - (0 if run.method == "full" else parts.static.adapters - state.weights)
    earlier = state.gradients if run.grad_accum > 1 else 0
    kept = base + parts.workspace + acts.checkpoints + acts.all_layers
    # Adapters in float32 stand beside their 16-bit copies while a trainer casts them, one tensor at a time.
    training = {
        "forward": kept + acts.layer // 2,
        "loss": kept + state.optimizer + acts.logits + earlier,
        # The head comes first in backward: of one micro-batch, no adapter has its gradient yet.
        "backward": kept + state.optimizer + max(acts.layer + state.gradients, acts.logits + earlier),
        "optimizer": base + parts.workspace + state.gradients + state.optimizer + state.step_temporaries,
    }
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
    return tuple(phases), max(phases, key=lambda phase: phase.device_bytes or 0)


def floor_of(phases: tuple[Phase, ...], context: ContextRow) -> int:
    """The smallest device total on which the run works: the cache given back, the context kept."""
    highest = max(phase.allocated_bytes or 0 for phase in phases)
    return int(highest * RESERVED_OVER_ALLOCATED_EXPANDABLE) + context.first_tensor_bytes + context.kernels_bytes


def _eval_phase(run: RunConfig, parts: Parts, base: int, factor: float, full: int) -> Phase:
    """Evaluation keeps nothing for backward, but returns whole logits in float32."""
    if run.eval_batch_size is None:
        return Phase(name="eval")
    ratio = run.eval_batch_size / run.batch_size
    allocated = base + parts.workspace + parts.state.optimizer + int(max(parts.acts.layer, parts.acts.logits) * ratio)
    reserved = int(allocated * factor)
    return Phase(name="eval", allocated_bytes=allocated, reserved_bytes=reserved, device_bytes=reserved + full)


def _offloaded(run: RunConfig, parts: Parts) -> int | None:
    return (parts.acts.checkpoints or parts.acts.all_layers) if run.activation_offloading else 0
