"""View: what an estimate shows, whichever way it was found."""

from __future__ import annotations

from collections.abc import Iterable

from qlora_planner.memory.records import ComponentLine, Phase
from qlora_planner.memory.weights.loading import PhasePeak
from qlora_planner.record import record


@record
class Breakdown:
    """Phases, the peak one, what is alive then, and the smallest device total that would do. Bytes.

    `ready_bytes` is live when the trainer has been made. `method` is how the figures were had (see
    evidence.calibration), which decides how far they may be off.
    """

    load: PhasePeak
    prepare: PhasePeak | None
    adapters: PhasePeak
    ready_bytes: int
    phases: tuple[Phase, ...]
    peak: Phase
    lines: tuple[ComponentLine, ...]
    floor_bytes: int
    trainable_params: int
    paged_bytes: int
    offloaded_bytes: int | None
    method: str


def highest(phases: Iterable[Phase]) -> Phase:
    """The phase of the most device bytes. What torch has cached stays, so phases are often equal: then that one which
    has most in use, because there the cache grew."""
    return max(phases, key=lambda phase: (phase.device_bytes or 0, phase.allocated_bytes or 0))
