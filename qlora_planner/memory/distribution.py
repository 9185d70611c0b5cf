"""How far a predicted figure may be off: from the method it was had by, and what measurements say of that."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

from qlora_planner.catalog.cuda import ContextRow
from qlora_planner.evidence.calibration import OTHER_FORM, PROVED_FORM, TRACED, Calibration
from qlora_planner.evidence.residuals import ErrorDistribution, Stated
from qlora_planner.record import record

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


def distribution(
    device_bytes: int, method: str, context: ContextRow, calibration: Calibration | None = None
) -> Distribution:
    """How a device figure that was predicted on this method may turn out.

    The law of what torch holds is that of held-out residuals, wider for a card whose context nobody measured; what is
    assumed where there are too few. The context's is exponential on either side of what is expected, with 90 % between
    the row's low and high.
    """
    widening = 1.0 if context.measured else ELSEWHERE
    measured = None if calibration is None else calibration.law(method, widening)
    return Distribution(
        torch_bytes=max(0, device_bytes - context.total_bytes),
        law=measured or ASSUMED[method],
        contexts=_contexts(context),
    )


def beside_a_cap(around: Distribution, context: ContextRow) -> Distribution:
    """The distribution against torch's own limit: whatever the context takes, it is not taken from torch."""
    return replace(around, contexts=((1.0, float(context.total_bytes)),))


@lru_cache(maxsize=16)
def _contexts(context: ContextRow) -> tuple[tuple[float, float], ...]:
    expected = context.total_bytes
    law = Stated(below=expected - context.low_bytes, above=context.high_bytes - expected, middle=expected)
    return tuple((share, max(0.0, law.quantile(middle))) for share, middle in _SLICES)


def interval(device_bytes: int, around: Distribution) -> tuple[int, int]:
    """The 90 % interval of a device figure, which itself is always inside."""
    low, high = _size_exceeded(around, 1 - _LOW), _size_exceeded(around, 1 - _HIGH)
    return min(int(low), device_bytes), max(int(high), device_bytes)


def _size_exceeded(around: Distribution, chance: float) -> float:
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
