"""calibrate and speed: which verifications teach it, and how it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_planner.catalog.gpus import GpuCatalogue, parse_gpu
from qlora_planner.evidence import CardReading, Measurement, NvmlReading
from qlora_planner.evidence.calibration import Calibration
from qlora_planner.evidence.efficiency import ASSUMED
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.records import Basis, Speed
from qlora_planner.report.calibration import render_calibration
from qlora_planner.report.parts.labels import speed_line
from qlora_planner.report.parts.theme import Theme
from qlora_planner.session.measuring.predictions import speed_traits
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.roofline import speed_of

PROFILES = Path(__file__).parents[2] / "profiles"
PROFILE = ModelCatalogue([PROFILES / "models"]).load("Qwen/Qwen2.5-0.5B")
CARD = parse_gpu("rtx-3090", GpuCatalogue([PROFILES / "gpus"]))


def verified(seq_len: int, seconds: float, **changes: Any) -> Measurement:
    run = resolve(PROFILE, RunConfig(seq_len=seq_len), CARD).run
    base: dict[str, Any] = {
        "created": "2026-11-24", "model": PROFILE.id, "config_sha256": PROFILE.config_sha256, "run": run,
        "outcome": "ok", "gpu": CardReading(name=CARD.label), "step_s": (9.0, seconds, seconds),
        "nvml": NvmlReading(others_bytes=0),
    }  # fmt: skip
    return Measurement(**{**base, **changes})


def silent(_text: str) -> None:
    """Say nothing."""


def assumed(seq_len: int) -> float:
    found = speed_of(PROFILE, resolve(PROFILE, RunConfig(seq_len=seq_len), CARD).run, CARD)
    assert found.step_s is not None and found.basis is Basis.ASSUMED
    return found.step_s


def test_exclusive_verifications_teach_the_speed_of_their_card() -> None:
    rows = [verified(seq_len, assumed(seq_len) * 1.3) for seq_len in (128, 512, 2048, 16384)]
    learnt = speed_traits(rows, silent)
    assert set(learnt) == {CARD.name} and learnt[CARD.name].count == 4
    known = Calibration(created="2026-11-24", speed=learnt)
    for one in rows:
        found = speed_of(PROFILE, one.run, CARD, known)
        assert found.basis is Basis.CALIBRATED
        assert found.step_s == pytest.approx(one.step_s[1], rel=0.12)


def test_shared_cards_and_cards_without_rates_teach_nothing() -> None:
    shared = verified(512, 1.0, nvml=NvmlReading(others_bytes=5 << 30))
    unknown = verified(512, 1.0, gpu=CardReading(name="A card that nobody lists"))
    assert speed_traits([shared, unknown], silent) == {}


def test_one_run_moves_a_known_card_little() -> None:
    before = Calibration(created="2026-11-24", speed={CARD.name: ASSUMED})
    learnt = speed_traits([verified(512, assumed(512) * 1.1)], silent, before)[CARD.name]
    assert learnt.launch_s == pytest.approx(ASSUMED.launch_s, rel=0.15)


def test_where_a_speed_comes_from_is_said() -> None:
    assert speed_line(Speed()) is None
    calibrated = speed_line(Speed(tokens_per_s=3567.2, step_s=0.574, basis=Basis.CALIBRATED))
    assert calibrated == "3,567 tokens/s, 0.57 s per step (predicted, calibrated on this card)"
    assert "nobody timed" in (speed_line(Speed(tokens_per_s=1.0, step_s=1.0, basis=Basis.ASSUMED)) or "")


def test_the_screen_shows_what_was_learnt() -> None:
    learnt = speed_traits([verified(512, assumed(512)), verified(4096, assumed(4096))], silent)
    screen = render_calibration(
        Calibration(created="2026-11-24", speed=learnt), 2, 2, "/here/user.json", Theme(width=80)
    )
    row = next(line for line in screen.splitlines() if line.startswith("rtx-3090"))
    assert row.split()[1:] == ["75", "%", "40", "%", "65", "%", "65", "and", "20", "2", "0", "%"]
