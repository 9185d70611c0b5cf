"""Static memory against the bytes measured on an H200: exact where the allocator's play is understood."""

from __future__ import annotations

import pytest

from qlora_planner.catalog.cuda import cublas_workspace_bytes
from qlora_planner.memory.closed_form.static_peaks import StaticPeaks, static_peaks_of
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.spec.model import ModelProfile
from tests.truth import Row, rows

OK = [row for row in rows() if row.outcome == "ok"]
H200_WORKSPACE = cublas_workspace_bytes("9.0")


def ground_of(row: Row, profiles: dict[str, ModelProfile]) -> StaticPeaks:
    profile = profiles[row.model]
    return static_peaks_of(profile, resolve(profile, row.run), H200_WORKSPACE)


@pytest.mark.parametrize("row", OK, ids=lambda row: f"{row.index}-{row.model}")
def test_loading_and_preparing_are_exact(row: Row, measured_profiles: dict[str, ModelProfile]) -> None:
    ground = ground_of(row, measured_profiles)
    assert ground.load.live == row.measured["load_alloc"]
    assert ground.load.reserved == row.measured["load_reserved"]
    assert abs(ground.load.allocated / row.measured["load_peak"] - 1) < 1e-4
    assert (ground.prepare or ground.load).live == row.measured["prepare_alloc"]


@pytest.mark.parametrize("row", OK, ids=lambda row: f"{row.index}-{row.model}")
def test_adapters_within_a_thousandth(row: Row, measured_profiles: dict[str, ModelProfile]) -> None:
    ground = ground_of(row, measured_profiles)
    assert abs(ground.adapters.live / row.measured["peft_alloc"] - 1) < 0.001


@pytest.mark.parametrize(
    "row",
    [row for row in OK if "prepare_peak" in row.measured and row.run.upcast],
    ids=lambda row: f"{row.index}-{row.model}",
)
def test_prepare_peak(row: Row, measured_profiles: dict[str, ModelProfile]) -> None:
    prepare = ground_of(row, measured_profiles).prepare
    assert prepare is not None
    assert abs(prepare.allocated / row.measured["prepare_peak"] - 1) < 0.001


def test_rows_are_not_vacuous() -> None:
    assert len(OK) == 66
    assert len({row.model for row in OK}) == 14
