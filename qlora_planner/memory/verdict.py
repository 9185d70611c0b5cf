"""From a floor with its distribution and a card to a verdict."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

from qlora_planner.catalog.cuda import ContextRow, context_row
from qlora_planner.catalog.gpus import usable_bytes
from qlora_planner.evidence.calibration import OTHER_FORM, PROVED_FORM, TRACED, Calibration
from qlora_planner.evidence.residuals import ErrorDistribution, Stated
from qlora_planner.memory.records import Fit, Problem
from qlora_planner.record import record
from qlora_planner.spec.libraries import library_bytes
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.run import RunConfig
from qlora_planner.units import format_mib

# Where no calibration is read, or it holds too few measurements for an interval: what 90 % of runs are assumed to stay
# within, below and above, as parts of what torch holds. Stated, not measured; evidence takes their place.
ASSUMED = {
    TRACED: Stated(below=0.02, above=0.02),
    PROVED_FORM: Stated(below=0.10, above=0.10),
    OTHER_FORM: Stated(below=0.25, above=0.33),
}
# Residuals come from the cards that were measured. On another card, whose kernels may take other scratch, each
# distance from their median is assumed half as large again.
ELSEWHERE = 1.5
FITS_AT_MOST, TIGHT_AT_MOST = 0.01, 0.50
_LOW, _HIGH = 0.05, 0.95
# A context's law in slices: the chance of each, and the chance of being below its middle. Thin ones at the ends.
_EDGES = (0.0, 0.005, 0.02, 0.1, 0.3, 0.7, 0.9, 0.98, 0.995, 1.0)
_SLICES = tuple((after - before, (after + before) / 2) for before, after in pairwise(_EDGES))
_STEPS = 60


@record
class Distribution:
    """How a device figure may turn out: what torch holds times 1 + `law`, and beside it one of the `contexts`.

    `contexts` are pairs of a chance and the bytes that the context then takes; the two are independent.
    """

    torch_bytes: int
    law: ErrorDistribution
    contexts: tuple[tuple[float, float], ...]

    def chance_above(self, size_bytes: float) -> float:
        """The chance that the process takes more than `size_bytes`."""
        torch_bytes = max(self.torch_bytes, 1)
        return sum(
            share * self.law.chance_above((size_bytes - beside) / torch_bytes - 1) for share, beside in self.contexts
        )


def context_of(gpu: GpuSpec | None, calibration: Calibration | None = None) -> ContextRow:
    """The context on a card: what measurements of that card say, else the catalogue's row."""
    known = None if gpu is None or calibration is None else calibration.contexts.get(gpu.name)
    if known is None:
        return context_row(gpu.name if gpu else None, gpu.form if gpu else None)
    whole = known.first_tensor_bytes + known.kernels_bytes
    return ContextRow(
        first_tensor_bytes=known.first_tensor_bytes,
        kernels_bytes=known.kernels_bytes,
        low_bytes=min(known.low_bytes, whole),
        high_bytes=max(known.high_bytes, whole),
        measured=True,
        why=f"calibrated: {format_mib(known.first_tensor_bytes)} after the first tensor, {format_mib(whole)} by the end"
        f" of a step, the middle of {known.count:,} runs measured on this card",
    )


def with_libraries(context: ContextRow, run: RunConfig) -> ContextRow:
    """The context of a run that uses other libraries than the usual one."""
    more = library_bytes(run)
    if not more:
        return context
    kernels = max(0, context.kernels_bytes + more)
    return replace(
        context,
        kernels_bytes=kernels,
        low_bytes=max(context.first_tensor_bytes, context.low_bytes + more),
        high_bytes=context.high_bytes + more,
        why=f"{context.why}; {more >> 20:+d} MiB for the libraries of this run",
    )


def distribution(
    device_bytes: int, method: str, context: ContextRow, calibration: Calibration | None = None
) -> Distribution:
    """How a device figure that was predicted on this method may turn out.

    The law of what torch holds is that of held-out residuals, wider for a card whose context nobody measured; what is
    assumed where there are too few. The context's is exponential on either side of what is expected, with 90 % between
    the row's low and high.
    """
    expected = context.first_tensor_bytes + context.kernels_bytes
    widening = 1.0 if context.measured else ELSEWHERE
    known = None if calibration is None else calibration.law(method, widening)
    return Distribution(
        torch_bytes=max(0, device_bytes - expected), law=known or ASSUMED[method], contexts=_contexts(context)
    )


def beside_a_cap(around: Distribution, context: ContextRow) -> Distribution:
    """The distribution against torch's own limit: whatever the context takes, it is not taken from torch."""
    expected = context.first_tensor_bytes + context.kernels_bytes
    return replace(around, contexts=((1.0, float(expected)),))


@lru_cache(maxsize=16)
def _contexts(context: ContextRow) -> tuple[tuple[float, float], ...]:
    expected = context.first_tensor_bytes + context.kernels_bytes
    law = Stated(below=expected - context.low_bytes, above=context.high_bytes - expected, middle=expected)
    return tuple((share, max(0.0, law.quantile(middle))) for share, middle in _SLICES)


def interval(device_bytes: int, around: Distribution) -> tuple[int, int]:
    """The 90 % interval of a device figure, which itself is always inside."""
    low, high = _where(around, 1 - _LOW), _where(around, 1 - _HIGH)
    return min(int(low), device_bytes), max(int(high), device_bytes)


def _where(around: Distribution, chance: float) -> float:
    """The size that is exceeded with this chance, by bisection."""
    low, high = 0.0, 4.0 * around.torch_bytes + 2 * max(beside for _, beside in around.contexts)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if high - low < 1024:
            break
        if around.chance_above(middle) > chance:
            low = middle
        else:
            high = middle
    return high


def probability_over(usable: int, around: Distribution) -> float:
    """The chance that the run needs more than `usable` bytes; `around` is the distribution of its floor."""
    return min(1.0, around.chance_above(usable))


def verdict_of(chance: float) -> str:
    """fits, tight or does-not-fit."""
    return "fits" if chance <= FITS_AT_MOST else "tight" if chance <= TIGHT_AT_MOST else "does-not-fit"


def usable_with_reason(gpu: GpuSpec, reserve_bytes: int, cap_bytes: int | None, context: ContextRow) -> tuple[int, str]:
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
    around: Distribution,
    problems: tuple[Problem, ...],
) -> Fit:
    """The verdict of a run on a card; `available` is what `usable_with_reason` gave."""
    usable, why = available
    chance = probability_over(usable, around)
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
