"""Laws of an unknown: ranks of a sample, tails beyond it, and what a stated interval means."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_planner.evidence.residuals import FEWEST, Residuals, Stated

SAMPLES = st.lists(st.floats(-0.5, 0.9, allow_subnormal=False), min_size=1, max_size=60).map(
    lambda values: Residuals(values=tuple(sorted(values)))
)


def test_ranks_of_nine() -> None:
    law = Residuals(values=tuple(n / 100 for n in range(1, 10)))
    assert [round(law.chance_above(n / 100), 12) for n in (1, 5, 9)] == [0.9, 0.5, 0.1]
    assert law.quantile(0.5) == pytest.approx(0.05)
    assert law.quantile(0.55) == pytest.approx(0.055)
    assert law.chance_above(0.055) == pytest.approx(0.45)


def test_beyond_the_sample_the_chance_falls_by_e_per_scale() -> None:
    law = Residuals(values=(-0.1, 0.0, 0.0, 0.0, 0.1))
    # Mean distance from the median: 0.04. The outermost fifth is one value, 0.1 above the rank before it.
    assert law.above_scale == pytest.approx(0.1)
    assert law.chance_above(0.1) == pytest.approx(1 / 6)
    assert law.chance_above(0.2) == pytest.approx(1 / 6 / 2.718281828, rel=1e-6)
    assert law.chance_above(-0.2) == pytest.approx(1 - 1 / 6 / 2.718281828, rel=1e-6)


@given(SAMPLES, st.floats(-2, 3), st.floats(0, 1))
def test_more_is_never_more_likely(law: Residuals, value: float, further: float) -> None:
    assert 0 <= law.chance_above(value + further) <= law.chance_above(value) <= 1


@given(SAMPLES, st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_quantiles_rise_and_undo_chances(law: Residuals, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert law.quantile(low) <= law.quantile(high) + 1e-12
    if len(set(law.values)) == len(law.values) and min(
        (b - a for a, b in zip(law.values, law.values[1:], strict=False)), default=1
    ) > 1e-6:  # fmt: skip
        assert 1 - law.chance_above(law.quantile(one)) == pytest.approx(one, abs=1e-6)


def test_the_interval_of_a_sample_holds_nine_of_ten_of_the_next() -> None:
    """The promise itself, on a skewed law that the rule does not know."""
    source = random.Random(7)

    def draw() -> float:
        return source.expovariate(40) - 0.01 if source.random() < 0.7 else -source.expovariate(90)

    inside = 0
    for _ in range(2000):
        law = Residuals(values=tuple(sorted(draw() for _ in range(FEWEST + 10))))
        inside += law.quantile(0.05) <= draw() <= law.quantile(0.95)
    assert 0.88 <= inside / 2000 <= 0.93


def test_one_percent_is_meant_with_fifty_values() -> None:
    """A tail beyond the sample: with 50 values the last percent is outside of it, and must still be near the truth."""
    source = random.Random(11)
    over = 0
    for _ in range(4000):
        law = Residuals(values=tuple(sorted(source.gauss(0, 0.01) for _ in range(50))))
        over += source.gauss(0, 0.01) > law.quantile(0.99)
    assert 0.003 <= over / 4000 <= 0.015


def test_wider_and_without_one() -> None:
    law = Residuals(values=(-0.02, 0.0, 0.01, 0.05, 0.06))
    wide = law.widened(2)
    assert wide.median == law.median
    assert wide.quantile(0.9) - wide.median == pytest.approx(2 * (law.quantile(0.9) - law.median))
    assert law.without(0.01).values == (-0.02, 0.0, 0.05, 0.06)


def test_a_stated_interval_leaves_five_percent_on_either_side() -> None:
    law = Stated(below=3.0, above=8.0, middle=10.0)
    assert law.chance_above(18.0) == pytest.approx(0.05)
    assert law.chance_above(7.0) == pytest.approx(0.95)
    assert law.chance_above(10.0) == pytest.approx(0.5)
    assert (law.quantile(0.05), law.quantile(0.95)) == (pytest.approx(7.0), pytest.approx(18.0))
    certain = Stated(below=0.0, above=0.0, middle=2.0)
    assert (certain.chance_above(1.9), certain.chance_above(2.1), certain.quantile(0.01)) == (1.0, 0.0, 2.0)


@pytest.mark.parametrize("values", [(), (0.2, 0.1)])
def test_what_is_no_sample_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        Residuals(values=values)
