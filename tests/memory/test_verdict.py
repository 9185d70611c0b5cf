"""From evidence to intervals and chances: what a calibration changes, and what it leaves alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_planner.catalog.cuda import context_row
from qlora_planner.evidence.calibration import OTHER_FORM, PROVED_FORM, TRACED, Calibration, CardContext
from qlora_planner.evidence.calibration_file import calibration_from_dict
from qlora_planner.memory import Component, MemoryEstimate
from qlora_planner.memory.budget import context_of
from qlora_planner.memory.distribution import beside_a_cap, distribution, interval, probability_over
from qlora_planner.memory.estimate import estimate
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.run import RunConfig
from qlora_planner.units import GIB, MIB

ROOT = Path(__file__).parents[2]
PROFILE = ModelCatalogue([ROOT / "profiles" / "models"]).load("meta-llama/Llama-3.1-8B")
CARD = GpuSpec(name="rtx-4090", label="RTX 4090", memory_bytes=24564 * MIB, compute_capability="8.9", bf16=True)
SHIPPED = calibration_from_dict(json.loads((ROOT / "profiles/calibrations/h200.json").read_text()))
KNOWN = CardContext(
    first_tensor_bytes=300 * MIB, kernels_bytes=90 * MIB, low_bytes=380 * MIB, high_bytes=420 * MIB, count=4
)
# A fifth of all runs took 10 % more than predicted, none less than 1 % under.
SKEWED = (*(-0.01 + n / 4000 for n in range(40)), *(0.1 + n / 1000 for n in range(10)))
MINE = Calibration(
    created="2026-11-24",
    contexts={"rtx-4090": KNOWN},
    residuals={TRACED: {"reserved": SKEWED}, PROVED_FORM: {"reserved": SKEWED}},
)


def answer(calibration: Calibration | None, gpu: GpuSpec = CARD, **options: int) -> MemoryEstimate:
    return estimate(PROFILE, RunConfig(seq_len=2048), gpu, calibration=calibration, **options)  # type: ignore[arg-type]


def test_a_calibration_moves_the_context_and_nothing_that_is_counted_or_derived() -> None:
    before, after = answer(None), answer(MINE)
    assert after.components["cuda_context"] == 390 * MIB
    assert after.basis["cuda_context"] == "calibrated"
    assert before.basis["cuda_context"] == "assumed"
    assert "4 runs measured on this card" in next(
        line.why for line in after.lines if line.component is Component.CUDA_CONTEXT
    )
    for name in before.components:
        assert name == "cuda_context" or before.components[name] == after.components[name]
    assert [phase.reserved_bytes for phase in before.phases] == [phase.reserved_bytes for phase in after.phases]
    moved = after.components["cuda_context"] - before.components["cuda_context"]
    assert after.peak.device_bytes - before.peak.device_bytes == moved


def test_another_card_learns_no_context_from_it() -> None:
    other = replace(CARD, name="rtx-3090")
    assert answer(MINE, other).components["cuda_context"] == answer(None, other).components["cuda_context"]


def test_the_interval_is_as_lopsided_as_the_residuals() -> None:
    context = context_of(CARD, MINE)
    device = 10 * GIB + 390 * MIB
    low, high = interval(device, distribution(device, TRACED, context, MINE))
    assert 0.005 * 10 * GIB < device - low < 0.02 * 10 * GIB
    assert 0.09 * 10 * GIB < high - device < 0.13 * 10 * GIB


def test_the_chance_of_running_out_counts_the_runs_that_were_above() -> None:
    context = context_of(CARD, MINE)
    floor = 10 * GIB + 390 * MIB
    around = distribution(floor, TRACED, context, MINE)
    # 5 % more than predicted lies in the gap between the fifth that took 10 % more and the rest.
    assert probability_over(floor + 10 * GIB // 20, around) == pytest.approx(0.2, abs=0.02)
    assert probability_over(floor + 10 * GIB // 2, around) < 1e-3
    assert probability_over(floor - 10 * GIB // 10, around) > 0.99


@given(st.sampled_from([TRACED, PROVED_FORM, OTHER_FORM]), st.integers(0, 100), st.integers(0, 100), st.integers(1, 8))
def test_what_fits_n_bytes_fits_more(method: str, floor: int, usable: int, more: int) -> None:
    context = context_row("h200", "datacenter")
    for calibration in (None, MINE, SHIPPED):
        around = distribution(floor * GIB, method, context, calibration)
        chance = probability_over(usable * GIB, around)
        assert 0 <= probability_over((usable + more) * GIB, around) <= chance <= 1
        low, high = interval(floor * GIB, around)
        assert low <= floor * GIB <= high


def test_weaker_footing_and_unmeasured_cards_have_wider_intervals() -> None:
    device = 20 * GIB

    def width(method: str, card: str, calibration: Calibration | None) -> int:
        low, high = interval(device, distribution(device, method, context_row(card, None), calibration))
        return high - low

    assert width(TRACED, "h200", None) < width(PROVED_FORM, "h200", None) < width(OTHER_FORM, "h200", None)
    assert width(TRACED, "h200", SHIPPED) < width(TRACED, "rtx-4090", SHIPPED)
    assert width(TRACED, "h200", SHIPPED) < width(OTHER_FORM, "h200", SHIPPED)


def test_under_torchs_own_limit_the_context_is_no_risk() -> None:
    context = context_row("rtx-4090", "desktop")  # assumed: 256 to 800 MiB
    expected = context.first_tensor_bytes + context.kernels_bytes
    around = distribution(8 * GIB + expected, TRACED, context, None)
    usable = int(8.4 * GIB) + expected
    assert probability_over(usable, beside_a_cap(around, context)) < probability_over(usable, around)
    card, cap = answer(None, cap_bytes=9 * GIB), answer(None)
    assert card.fit is not None
    assert cap.fit is not None
    assert card.fit.usable_bytes < cap.fit.usable_bytes


def test_the_shipped_residuals_keep_their_promise_when_each_is_left_out() -> None:
    held = SHIPPED.held_out(TRACED, "reserved")
    assert held is not None
    assert held.count >= 40
    assert held.inside is not None
    assert held.median_width is not None
    assert 0.85 <= held.inside / held.count <= 0.97
    assert held.median_width <= 0.06
