"""The smallest limit under which a run still works, by bisection; and a small card's limit on a large one."""

from __future__ import annotations

from collections.abc import Callable

from qlora_planner.errors import InputError, RunError
from qlora_planner.evidence import Measurement
from qlora_planner.measure.spec import ChildSpec
from qlora_planner.measure.verify import verify, with_cap
from qlora_planner.record import record
from qlora_planner.units import MIB

# The allocator asks CUDA for memory in segments of 2 MiB and 20 MiB: a finer search measures nothing.
TOLERANCE_BYTES = 32 * MIB


@record
class Floor:
    """`works_bytes`: the smallest limit tried under which the run worked; `fails_bytes`: the largest under which it
    ran out of memory (None: none did). `tries`: every limit tried, with its measurement."""

    works_bytes: int
    fails_bytes: int | None
    tries: tuple[tuple[int, Measurement], ...]


def find_floor(
    spec: ChildSpec,
    low: int,
    high: int,
    tolerance: int = TOLERANCE_BYTES,
    *,
    measure: Callable[[ChildSpec], Measurement] = verify,
    tell: Callable[[int, str], None] = lambda _cap, _outcome: None,
) -> Floor:
    """Bisect torch's limit between `low` and `high` bytes until less than `tolerance` lies between.

    `low` is tried too, in case the run works there. `tell(cap, outcome)` hears of each try. Raises InputError for
    limits in the wrong order or a run that does not work under `high`, RunError when a try fails for another
    reason than memory.
    """
    if not 0 < low <= high or tolerance < 1:
        raise InputError(f"floor: limits must satisfy 0 < low <= high, not {low} and {high}")
    tries: list[tuple[int, Measurement]] = []

    def works(cap_bytes: int) -> bool:
        measurement = measure(with_cap(spec, cap_bytes))
        tries.append((cap_bytes, measurement))
        tell(cap_bytes, measurement.outcome)
        if measurement.outcome not in ("ok", "out-of-memory"):
            raise RunError(f"floor: under {cap_bytes} bytes the run failed: {measurement.error}")
        return measurement.outcome == "ok"

    if not works(high):
        raise InputError(f"floor: the run does not work under {high} bytes; raise the upper limit")
    if low == high or works(low):
        return Floor(works_bytes=low, fails_bytes=None, tries=tuple(tries))
    while high - low > tolerance:
        middle = (low + high) // 2
        if works(middle):
            high = middle
        else:
            low = middle
    return Floor(works_bytes=high, fails_bytes=low, tries=tuple(tries))
