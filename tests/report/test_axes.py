"""The axes of a training's report: round figures from nought, never below what cannot be negative."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_planner.report.pages.training_html import chart, ticks


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (23.3, 23.4, [0, 10, 20, 30]),
        (1130.0, 1377.0, [0, 500, 1000, 1500]),
        (0.7, 7.5, [0, 2, 4, 6, 8]),
        (0.0, 2e-4, [0, 5e-5, 1e-4, 1.5e-4, 2e-4]),
        (0.0, 0.0, [0, 0.25]),
        (-1.0, 3.0, [-1, 0, 1, 2, 3]),
        (-4.0, -3.0, [-4, -3, -2, -1, 0]),
    ],
)
def test_ticks_are_round_and_start_at_nought(low: float, high: float, marks: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(marks)


@given(low=st.floats(-1e9, 1e9), span=st.floats(0, 1e9))
def test_an_axis_holds_its_figures_in_a_few_even_steps(low: float, span: float) -> None:
    marks = ticks(low, low + span)
    slack = 1e-6 * max(abs(low), abs(low + span), 1e-6)
    assert marks[0] <= low + slack
    assert marks[-1] >= low + span - slack
    assert 2 <= len(marks) <= 8
    assert (marks[0] < 0) == (low < -slack) or abs(low) <= slack
    steps = [after - before for before, after in pairwise(marks)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)


def labels(svg: str) -> list[str]:
    return re.findall(r'text-anchor="end">([-\d.,e]+)</text>', svg)


def test_no_axis_of_a_speed_goes_below_nought() -> None:
    steady = [(float(step), 23.333) for step in range(1, 9)]
    drawn = labels(chart([("tokens/s", "#000", steady)], "tokens/s"))
    assert drawn == ["0", "5", "10", "15", "20", "25"] or drawn == ["0", "10", "20", "30"]
    slow = labels(chart([("tokens/s", "#000", [(1.0, 0.4), (2.0, 25.0)])], "tokens/s"))
    assert not any(label.startswith("-") for label in slow)
    assert labels(chart([("tokens/s", "#000", [(1.0, 21_000.0)])], "tokens/s"))[-1] == "30,000"


def test_a_loss_that_is_no_number_leaves_the_others_drawn() -> None:
    svg = chart([("training", "#000", [(1.0, 2.5), (2.0, float("nan")), (3.0, float("inf"))])], "")
    assert "nan" not in svg
    assert "inf" not in svg
    assert chart([("training", "#000", [(1.0, float("nan"))])], "") == "<p>nothing was recorded</p>"
