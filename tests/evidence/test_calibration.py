"""What is learnt from measurements, what is passed over, and that files come back as they were."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from qlora_planner.errors import InputError
from qlora_planner.evidence import NvmlReading
from qlora_planner.evidence.calibration import (
    TRACED,
    Calibration,
    Prediction,
    calibrate,
    card_slug,
    latest,
    pooled,
    usable,
)
from qlora_planner.evidence.calibration_file import calibration_from_dict
from qlora_planner.evidence.residuals import FEWEST
from qlora_planner.units import GIB, MIB
from tests.evidence.made import CONTEXT, measured

TEN = Prediction(method=TRACED, allocated_bytes=9 * GIB, reserved_bytes=10 * GIB, device_bytes=10 * GIB + 650 * MIB)


def many(count: int = 25) -> Calibration:
    rows = [measured(reserved=10 * GIB + n * 50 * MIB, context=(640 + n) * MIB) for n in range(count)]
    return calibrate([(row, TEN) for row in rows], "2026-11-24")


def test_residuals_are_measured_over_predicted() -> None:
    found = calibrate([(measured(reserved=11 * GIB), TEN)], "2026-11-24").residuals[TRACED]
    assert found["reserved"] == (pytest.approx(0.1),)
    assert found["allocated"] == (0.0,)
    assert found["slack"] == (pytest.approx(0.1),)
    assert found["device"] == (pytest.approx(GIB / (10 * GIB + 650 * MIB), abs=1e-5),)


def test_the_context_is_learnt_by_card_and_by_nothing_else() -> None:
    found = many()
    context = found.contexts["rtx-4090"]
    assert (context.first_tensor_bytes, context.kernels_bytes) == (CONTEXT, 152 * MIB)
    assert (context.low_bytes, context.high_bytes, context.count) == (640 * MIB, 664 * MIB, 25)
    assert set(found.contexts) == {"rtx-4090"}


def test_what_says_nothing_is_passed_over() -> None:
    passed = [
        measured(outcome="out-of-memory"), measured(cap_bytes=12 * GIB), measured(device="cpu"), measured(toy=True),
    ]  # fmt: skip
    assert [usable(one) for one in passed] == [False] * 4
    assert calibrate([(one, TEN) for one in passed], "2026-11-24") == Calibration(created="2026-11-24")
    blind = measured(nvml=NvmlReading())
    found = calibrate([(blind, TEN)], "2026-11-24")
    assert not found.contexts
    assert set(found.residuals[TRACED]) == {"allocated", "reserved", "slack"}


def test_a_figure_that_others_are_part_of_teaches_no_context() -> None:
    shared = measured()
    shared = replace(shared, nvml=replace(shared.nvml, source="device-difference"))
    found = calibrate([(shared, TEN)], "2026-11-24")
    assert not found.contexts
    assert "device" not in found.residuals[TRACED]


def test_repeats_of_one_run_are_one() -> None:
    older, newer = measured(), measured(reserved=11 * GIB, created="2026-11-25")
    other = measured(run=older.run.with_(seq_len=4096))
    assert latest([newer, older, other]) == [newer, other]


def test_too_few_give_no_law_and_enough_do() -> None:
    assert many(FEWEST - 1).law(TRACED) is None
    law = many(FEWEST).law(TRACED)
    assert law is not None
    assert law.median > 0
    assert many(FEWEST).law("other-form") is None


def test_leave_one_out_judges_each_by_the_others() -> None:
    held = many(40).held_out(TRACED, "reserved")
    assert held is not None
    assert held.count == 40
    assert held.inside is not None
    assert 34 <= held.inside <= 39  # all but the ends
    few = many(5).held_out(TRACED, "reserved")
    assert few is not None
    assert few.inside is None


def test_pooling_adds_residuals_and_keeps_the_first_context() -> None:
    mine, shipped = many(3), many(30)
    both = pooled([mine, shipped])
    assert both is not None
    assert len(both.residuals[TRACED]["reserved"]) == 33
    assert both.contexts["rtx-4090"].count == 3
    assert pooled([]) is None


def test_card_names_are_the_catalogues() -> None:
    assert card_slug("NVIDIA GeForce RTX 4090") == "rtx-4090"
    assert card_slug("Tesla T4") == "t4"
    assert card_slug("NVIDIA H200") == "h200"


def test_round_trip() -> None:
    found = many()
    assert calibration_from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("schema", "other/1", "schema"),
        ("created", 5, "created"),
        ("extra", 1, "extra"),
        ("stack", {"torch": 2}, "stack"),
        ("contexts", [], "contexts"),
        ("contexts", {"t4": {"count": 1}}, "contexts.t4"),
        ("residuals", {"guessed": {}}, "guessed"),
        ("residuals", {"traced": {"reserved": [0.2, 0.1]}}, "ascending"),
        ("residuals", {"traced": {"reserved": [float("nan")]}}, "numbers"),
        ("residuals", {"traced": {"other": [0.1]}}, "other"),
    ],
)
def test_garbage_is_named(key: str, value: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        calibration_from_dict({**many().to_dict(), key: value}, "some/file.json")
    assert "some/file.json" in str(caught.value)
    assert "\n" not in str(caught.value)
