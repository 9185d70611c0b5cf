"""From a floor with its spread and a card to a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, hypot, sqrt

from qlora_planner.catalog.cuda import ContextRow
from qlora_planner.hardware import GpuSpec, usable_bytes
from qlora_planner.memory.records import Fit, Problem
from qlora_planner.units import format_mib

# One standard deviation of what torch holds, below and above, as parts of it. Stated assumptions until residuals of
# held-out measurements replace them: a traced run, a closed form within and outside what it was proved for.
TRACED, PROVED_FORM, OTHER_FORM = (0.012, 0.012), (0.06, 0.06), (0.15, 0.20)
# Half a 90 % interval of a normal distribution, in standard deviations.
_NINETY = 1.645
FITS_AT_MOST, TIGHT_AT_MOST = 0.01, 0.50


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One standard deviation of a device figure on either side, in bytes."""

    down: float
    up: float


def spread(device_bytes: int, parts: tuple[float, float], context: ContextRow) -> Spread:
    """The model's own uncertainty and the context's, which are independent, together."""
    expected = context.first_tensor_bytes + context.kernels_bytes
    torch_bytes = max(0, device_bytes - expected)
    down, up = parts
    return Spread(
        down=hypot(torch_bytes * down, (expected - context.low_bytes) / _NINETY),
        up=hypot(torch_bytes * up, (context.high_bytes - expected) / _NINETY),
    )


def interval(device_bytes: int, around: Spread) -> tuple[int, int]:
    """A 90 % interval around a device figure."""
    return int(device_bytes - _NINETY * around.down), int(device_bytes + _NINETY * around.up)


def probability_over(floor_bytes: int, usable: int, around: Spread) -> float:
    """The chance that the run needs more than `usable` bytes, given its floor and the floor's spread."""
    distance = usable - floor_bytes
    deviation = around.up if distance > 0 else around.down
    if deviation <= 0:
        return 0.0 if distance >= 0 else 1.0
    return 0.5 * (1 - erf(distance / (deviation * sqrt(2))))


def verdict_of(chance: float) -> str:
    """fits, tight or does-not-fit."""
    return "fits" if chance <= FITS_AT_MOST else "tight" if chance <= TIGHT_AT_MOST else "does-not-fit"


def room(gpu: GpuSpec, reserve_bytes: int, cap_bytes: int | None, context: ContextRow) -> tuple[int, str]:
    """Device bytes that the process may reach on the card, and why; a cap limits torch, so the context comes on top."""
    usable, why = usable_bytes(gpu, reserve_bytes)
    if cap_bytes is not None:
        capped = cap_bytes + context.first_tensor_bytes + context.kernels_bytes
        if capped < usable:
            return capped, f"torch's limit of {format_mib(cap_bytes)} and the context"
    return usable, why


def fit(
    gpu: GpuSpec,
    available: tuple[int, str],
    device_bytes: int,
    floor_bytes: int,
    around: Spread,
    problems: tuple[Problem, ...],
) -> Fit:
    """The verdict of a run on a card; `available` is what `room` gave."""
    usable, why = available
    chance = probability_over(floor_bytes, usable, around)
    refused = [problem for problem in problems if problem.blocking]
    if refused:
        verdict = "will-not-run"
        reasons = [f"{problem.message}; use {problem.fix}" for problem in refused]
    else:
        verdict = verdict_of(chance)
        reasons = [
            f"needs at least {format_mib(floor_bytes)} of the {format_mib(usable)} a process can use"
            f" ({why}); chance of running out {chance:.1%}"
        ]
    return Fit(
        gpu=gpu.name,
        capacity_bytes=gpu.memory_bytes,
        usable_bytes=usable,
        headroom_bytes=usable - device_bytes,
        verdict=verdict,
        probability_oom=None if refused else chance,
        reasons=tuple(reasons),
    )
