"""A sample of benchmarks/kill_matrix.py: killed at a phase, gone on with, and the same adapter to the bit."""

from __future__ import annotations

import sys

import pytest

from benchmarks.kill_matrix import MOMENTS, Kill, Matrix, kills
from tests.wide import some

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
SAMPLE = [
    Kill("run.json is written", "parent"),
    Kill("the last checkpoint is sealed", "both"),
    Kill("the adapter is begun", "child"),
]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("matrix"))


@pytest.mark.fault(
    "child, parent or both killed (`kill -9`) at any phase",
    does="`--resume`, or the same command where nothing was begun, ends with the same adapter to the bit",
    exit="-",
    part="resumed",
)
@pytest.mark.parametrize("kill", some(SAMPLE, 3), ids=lambda kill: f"{kill.moment}, {kill.who}")
def test_a_run_that_was_killed_ends_with_the_same_bits(kill: Kill, matrix: Matrix) -> None:
    outcome = matrix.run(kill, f"{kill.moment} {kill.who}")
    assert outcome.same, outcome


def test_every_phase_is_killed_three_times() -> None:
    found = list(kills())
    assert len(found) == 60 and set(SAMPLE) <= set(found)
    assert {kill.moment for kill in found} == {*MOMENTS, "at random"}
