"""View: what an estimate shows, whichever way it was found."""

from __future__ import annotations

from qlora_planner.memory.loading import PhasePeak
from qlora_planner.memory.records import ComponentLine, Phase
from qlora_planner.record import record


@record
class View:
    """Phases, the peak one, what is alive then, and the smallest device total that would do. Bytes.

    `footing` is how the figures were had (see evidence.calibration), which decides how far they may be off.
    """

    load: PhasePeak
    prepare: PhasePeak | None
    adapters: PhasePeak
    phases: tuple[Phase, ...]
    peak: Phase
    lines: tuple[ComponentLine, ...]
    floor_bytes: int
    trainable_params: int
    paged_bytes: int
    offloaded_bytes: int | None
    footing: str
