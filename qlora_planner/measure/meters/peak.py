"""The phase in which the process took most, and what was alive then: what an estimate says of its own peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlora_planner.evidence import NvmlReading, PhaseReading
from qlora_planner.measure.events import MemoryEvent
from qlora_planner.measure.meters.attribution import components_at, highest_moment
from qlora_planner.measure.meters.timeline import AFTER_TRAINING, BEFORE_TRAINING, TRAINING, Timeline
from qlora_planner.memory.records import Component


def peak_phase(readings: Mapping[str, PhaseReading], nvml: NvmlReading | None) -> str | None:
    """The phase of the most device bytes, the first of equals; None where torch has no counter of reserved bytes.

    From the first step on the libraries' kernels stand beside what torch reserves. Where NVML did not give them,
    torch's counter alone decides.
    """
    beside = _kernels_bytes(readings, nvml)
    levels: dict[str, int] = {}
    for phase in (*BEFORE_TRAINING, TRAINING, *AFTER_TRAINING):
        reserved = readings[phase].reserved_bytes if phase in readings else None
        if reserved is not None:
            levels[phase] = reserved + (0 if phase in BEFORE_TRAINING else beside)
    return max(levels, key=levels.__getitem__) if levels else None


def peak_components(
    events: Sequence[MemoryEvent],
    timeline: Timeline,
    readings: Mapping[str, PhaseReading],
    nvml: NvmlReading | None,
    *,
    failed: bool,
    checkpoint_every: int | None,
    workspace_bytes: int,
) -> dict[str, int] | None:
    """Bytes by component name when most was allocated in the peak phase; None without events.

    The process can take most after more was allocated: a block that only loading needed is cached by then, and slack.
    Of a run that `failed` for lack of memory the moment is that of the request, whatever the phase.
    """
    phase = None if failed else peak_phase(readings, nvml)
    moment = highest_moment(events, timeline, phase=phase)
    if moment is None:
        return None
    components = components_at(moment, timeline, checkpoint_every=checkpoint_every, workspace_bytes=workspace_bytes)
    reserved_bytes = [reading.reserved_bytes for reading in readings.values() if reading.reserved_bytes is not None]
    if phase is not None:
        reserved = readings[phase].reserved_bytes or 0
        components[Component.ALLOCATOR_SLACK.value] = max(0, reserved - moment.allocated_bytes)
    else:
        reserved = max(reserved_bytes, default=0)
    device = None
    if nvml is not None and reserved_bytes:
        device = nvml.process_end_bytes if phase == TRAINING else nvml.process_peak_bytes
    if device is not None:
        components[Component.CUDA_CONTEXT.value] = max(0, device - reserved)
    return components


def _kernels_bytes(readings: Mapping[str, PhaseReading], nvml: NvmlReading | None) -> int:
    """What the process came to hold beside its first context and what torch reserves."""
    training = readings.get(TRAINING)
    if nvml is None or training is None or training.reserved_bytes is None:
        return 0
    if nvml.process_end_bytes is None or nvml.context_bytes is None:
        return 0
    return max(0, nvml.process_end_bytes - training.reserved_bytes - nvml.context_bytes)
