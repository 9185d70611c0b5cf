"""Laws of an unknown: how far a measurement may be from its prediction, and how likely each distance is."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import field
from math import exp, log
from typing import Protocol

from qlora_planner.record import complete, record

# Two ranks of n measurements bound 90 % of the next one when each tail holds a rank: (n + 1) x 5 % >= 1.
FEWEST = 19
# The least scale of a tail, as a part of what torch holds: one 2 MiB segment of 2 GiB.
SMALLEST_SCALE = 2 / 2048
_TAIL = 0.05


class ErrorDistribution(Protocol):
    """A distribution of an unknown, by its two directions."""

    def chance_above(self, value: float) -> float:
        """The chance that the unknown is above `value`."""

    def quantile(self, chance: float) -> float:
        """The value that the unknown stays below with this chance (between 0 and 1, both excluded)."""


@record
class Stated:
    """An assumption: 90 % within `below` under and `above` over `middle`, exponential on either side.

    On each side the chance of being further than x is exp(-x / scale) / 2, so 5 % are left at scale x ln 10. A side
    of no width is certain.
    """

    below: float
    above: float
    middle: float = 0.0

    def chance_above(self, value: float) -> float:
        """The chance that the unknown is above `value`."""
        distance = value - self.middle
        scale = (self.above if distance >= 0 else self.below) / log(0.5 / _TAIL)
        if scale <= 0:
            return 0.0 if distance >= 0 else 1.0
        far = 0.5 * exp(-abs(distance) / scale)
        return far if distance >= 0 else 1 - far

    def quantile(self, chance: float) -> float:
        """The value that the unknown stays below with this chance."""
        if chance < 0.5:
            return self.middle + self.below / log(0.5 / _TAIL) * log(2 * chance)
        return self.middle - self.above / log(0.5 / _TAIL) * log(2 * (1 - chance))


@record
class Residuals:
    """Held-out relative residuals (measured / predicted - 1), ascending, as the law of the next one.

    The rank rule of conformal prediction: the next residual is below the k-th of n with chance k / (n + 1), whatever
    their distribution, and in between in proportion. What lies beyond the sample, 1 / (n + 1) at either end, falls
    exponentially from the extreme value. Its scale is the mean excess of the outermost fifth over the rank before it
    (peaks over a threshold, with shape 0), and no less than the mean distance of all from the median.
    Raises ValueError for no values.
    """

    values: tuple[float, ...]
    median: float = field(init=False, compare=False)
    below_scale: float = field(init=False, compare=False)  # of the exponential tails, computed once
    above_scale: float = field(init=False, compare=False)

    def __post_init__(self) -> None:
        values = self.values
        if not values or list(values) != sorted(values):
            raise ValueError("residuals must be ascending, and at least one")
        middle = (values[len(values) // 2] + values[(len(values) - 1) // 2]) / 2
        complete(self, median=middle)
        complete(self, below_scale=_scale([middle - value for value in reversed(values)]))
        complete(self, above_scale=_scale([value - middle for value in values]))

    def chance_above(self, value: float) -> float:
        """The chance that the next residual is above `value`."""
        values, ranks = self.values, len(self.values) + 1
        if value >= values[-1]:
            return exp((values[-1] - value) / self.above_scale) / ranks
        if value < values[0]:
            return 1 - exp((value - values[0]) / self.below_scale) / ranks
        after = bisect_right(values, value)  # ranks of `value` itself and of what is below it
        before = values[after - 1]
        return 1 - (after + (value - before) / (values[after] - before)) / ranks

    def quantile(self, chance: float) -> float:
        """The value that the next residual stays below with this chance."""
        values = self.values
        rank = chance * (len(values) + 1)
        if rank <= 1:
            return values[0] + self.below_scale * log(rank)
        if rank >= len(values):
            return values[-1] - self.above_scale * log(len(values) + 1 - rank)
        whole = int(rank)
        return values[whole - 1] + (rank - whole) * (values[whole] - values[whole - 1])

    def widened(self, factor: float) -> Residuals:
        """The same law with every distance from the median multiplied."""
        middle = self.median
        return Residuals(values=tuple(middle + factor * (value - middle) for value in self.values))

    def without(self, value: float) -> Residuals:
        """The law that the others give; `value` must be one of several."""
        at = bisect_left(self.values, value)
        return Residuals(values=(*self.values[:at], *self.values[at + 1 :]))


def _scale(distances: list[float]) -> float:
    """The scale of the tail that the last of these ascending distances from the median begin."""
    spread = sum(map(abs, distances)) / len(distances)
    outer = len(distances) // 5
    excess = sum(distances[-outer:]) / outer - distances[-outer - 1] if outer else 0.0
    return max(spread, excess, SMALLEST_SCALE)
