"""Errors of predictions: signed, by figure, only where both were had."""

from __future__ import annotations

import pytest

from benchmarks.campaign_report import errors_of, summary
from qlora_planner.units import GIB
from tests.evidence.made import measured
from tests.report.records import make_estimate


def test_signed_errors_of_what_was_predicted_and_read() -> None:
    # Every phase of the made estimate reserves 10 GiB less 2 bytes; it has no preparing.
    one = measured(reserved=8 * GIB, allocated=12 * GIB, predicted=make_estimate(peak=10 * GIB).to_dict())
    found = errors_of(one)
    assert set(found) == {"load peak", "train allocated", "train reserved", "device"}
    assert found["train reserved"] == pytest.approx(0.25)
    assert found["train allocated"] == pytest.approx(-1 / 6)
    assert found["load peak"] == pytest.approx(1.0)


def test_the_summary_keeps_the_sign_of_the_worst() -> None:
    rows = [{"device": 0.01}, {"device": -0.04, "load peak": 0.0}, {"device": 0.03}]
    found = {name: (count, mean, under, worst) for name, count, mean, under, worst in summary(rows)}
    count, mean, under, worst = found["device"]
    assert (count, mean) == (3, pytest.approx(8 / 3))
    assert (under, worst) == (pytest.approx(-4.0), pytest.approx(-4.0))
    assert found["load peak"][0] == 1
    assert "prepare peak" not in found
