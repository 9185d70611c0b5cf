"""The speed model: laws, one form for one and for many, what a fit learns, and held-out timings of a real card."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlora_planner import session
from qlora_planner.catalog.gpus import GpuCatalogue, parse_gpu
from qlora_planner.errors import InputError
from qlora_planner.evidence import CardReading, Measurement, NvmlReading
from qlora_planner.evidence.calibration import Calibration, pooled
from qlora_planner.evidence.calibration_file import calibration_from_dict
from qlora_planner.evidence.efficiency import ASSUMED, FITTED, KernelEfficiency
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.records import Basis, Speed
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.evidence import measurements_in, read_calibration
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.fit import EXCLUSIVE, TimedRun, fit, timed
from qlora_planner.speed.roofline import Rates, SpeedModel, cost_of, speed_model, speed_of
from qlora_planner.speed.step import step_work

PROFILES = Path(__file__).parents[2] / "profiles"
TIMINGS = PROFILES / "measurements" / "h200-timings.jsonl"
MODELS = ModelCatalogue([PROFILES / "models"])
CARDS = GpuCatalogue([PROFILES / "gpus"])
H200, CONSUMER = parse_gpu("h200", CARDS), parse_gpu("rtx-4090", CARDS)
# Dense and grouped heads, sliding windows, layer norms with Conv1D, routed experts with adapters, a chunked scan.
NAMES = ("meta-llama/Llama-3.1-8B", "google/gemma-2-2b", "openai-community/gpt2", "Qwen/Qwen3-30B-A3B",
         "Qwen/Qwen3.5-0.8B")  # fmt: skip
OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"upcast": True}, {"trainer": "hf-trainer"}, {"trainer": "loop"}, {"quant": "int8"}, {"attention": "eager"},
    {"method": "lora"}, {"padding": True, "batch_size": 2}, {"lora_dropout": 0.0}, {"grad_accum": 4},
)  # fmt: skip


def model_of(name: str, gpu: GpuSpec = H200, **options: Any) -> SpeedModel:
    profile = MODELS.load(name)
    resolution = resolve(profile, RunConfig(**options), gpu)
    found = speed_model(profile, resolution, gpu)
    assert found is not None
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_more_work_never_takes_less_time(name: str, options: dict[str, Any]) -> None:
    model = model_of(name, **options)
    for sizes in ((1, 512, 8), (2, 4000, 16), (1, 4096, 64)):
        batch, seq, rank = sizes
        least = model.step_s(batch, seq, rank)
        assert least > 0
        assert least <= model.step_s(batch + 1, seq, rank)
        assert least <= model.step_s(batch, seq + 100, rank)
        assert least <= model.step_s(batch, seq, rank * 2)


@pytest.mark.parametrize("name", NAMES)
def test_each_saving_of_memory_costs_time(name: str) -> None:
    sizes = (1, 2048, 16)
    assert model_of(name).step_s(*sizes) >= model_of(name, gradient_checkpointing=False).step_s(*sizes)
    assert model_of(name, grad_accum=2).step_s(*sizes) > model_of(name).step_s(*sizes)
    assert model_of(name, use_reentrant=True).step_s(*sizes) >= model_of(name).step_s(*sizes)


@pytest.mark.parametrize("name", NAMES)
def test_a_faster_card_is_never_slower(name: str) -> None:
    for change in ({"bf16_flops": 2 * (H200.bf16_flops or 0)}, {"bandwidth_bytes_per_s": 9_600_000_000_000}):
        faster = replace(H200, **change)  # type: ignore[arg-type]
        for sizes in ((1, 256, 8), (8, 2048, 16)):
            assert model_of(name, faster).step_s(*sizes) <= model_of(name).step_s(*sizes)
    assert model_of(name, CONSUMER).step_s(8, 2048, 16) > model_of(name).step_s(8, 2048, 16)


@pytest.mark.parametrize("name", NAMES)
def test_many_at_once_are_each_alone(name: str) -> None:
    model, random = model_of(name), np.random.default_rng(3)
    batch, seq, rank = (random.integers(1, high, 300) for high in (33, 20_000, 257))
    together = model.step_s(batch, seq, rank)
    assert together.tolist() == [
        float(model.step_s(*one)) for one in zip(batch.tolist(), seq.tolist(), rank.tolist(), strict=True)
    ]
    alone = model.tokens_per_s(int(batch[0]), int(seq[0]), int(rank[0]))
    assert model.tokens_per_s(batch, seq, rank)[0] == alone


def test_an_estimate_has_the_speed_of_its_run() -> None:
    profile = MODELS.load(NAMES[0])
    found = session.estimate(profile, RunConfig(batch_size=1, grad_accum=4), H200)
    speed = found.speed
    assert speed.basis is Basis.CALIBRATED and speed.step_s is not None and speed.tokens_per_s is not None
    assert speed.tokens_per_s * speed.step_s == pytest.approx(4 * 2048)
    assert json.loads(json.dumps(found.to_dict()))["speed"]["basis"] == "calibrated"
    elsewhere = session.estimate(profile, RunConfig(), CONSUMER).speed
    assert elsewhere.basis is Basis.ASSUMED and (elsewhere.step_s or 0) > 0
    assert session.estimate(profile, RunConfig(), parse_gpu("24GB", CARDS)).speed == Speed()
    assert session.estimate(profile, RunConfig(), None).speed == Speed()


def test_a_price_is_hours_times_rent_and_unknown_without_either() -> None:
    speed = Speed(tokens_per_s=1000.0, step_s=2.0, basis=Basis.ASSUMED)
    card = replace(H200, rent_usd_per_hour=3.6)
    cost = cost_of(speed, card, epoch_tokens=7_200_000)
    assert cost.usd_per_million_tokens == pytest.approx(1.0)
    assert (cost.epoch_hours, cost.usd_per_epoch) == (pytest.approx(2.0), pytest.approx(7.2))
    unpriced = cost_of(speed, replace(card, rent_usd_per_hour=None), epoch_tokens=7_200_000)
    assert unpriced.usd_per_million_tokens is None and unpriced.usd_per_epoch is None
    assert unpriced.epoch_hours == pytest.approx(2.0)
    assert cost_of(Speed(), card).usd_per_million_tokens is None


def made(traits: KernelEfficiency, noise: float = 0.0) -> list[TimedRun]:
    """Runs as a card of these traits would be timed, from those that hosts bind to those that the card does."""
    found = []
    for index, (name, sizes) in enumerate(
        (name, sizes)
        for name in ("meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-0.5B")
        for sizes in ((1, 128), (1, 2048), (8, 2048), (2, 16384))
    ):
        profile = MODELS.load(name)
        resolution = resolve(profile, RunConfig(), H200)
        rates = Rates.of(H200, "bfloat16")
        assert rates is not None
        run = TimedRun(work=step_work(profile, resolution), rates=rates, batch_size=sizes[0],
                       seq_len=sizes[1], rank=16, step_s=1.0)  # fmt: skip
        found.append(replace(run, step_s=run.predicted(traits) * (1 + noise * (-1) ** index)))
    return found


def test_a_fit_finds_another_card() -> None:
    other = replace(ASSUMED, bandwidth_fraction=0.45, launch_s=30e-6, engine_launch_s=12e-6)
    runs = made(other, noise=0.02)
    found = fit(runs)
    assert found.traits.bandwidth_fraction == pytest.approx(0.45, rel=0.15)
    assert found.traits.launch_s == pytest.approx(30e-6, rel=0.25)
    assert found.traits.count == len(runs) == len(found.left_out)
    before = [abs(run.predicted(ASSUMED) / run.step_s - 1) for run in runs]
    after = [abs(run.predicted(found.traits) / run.step_s - 1) for run in runs]
    assert max(after) < 0.08 < max(before)


def test_an_odd_run_does_not_decide_and_none_is_refused() -> None:
    runs = made(ASSUMED)
    odd = [replace(runs[0], step_s=runs[0].step_s * 6), *runs[1:]]
    found = fit(odd).traits
    assert all(getattr(found, name) == pytest.approx(getattr(ASSUMED, name), rel=0.25) for name in FITTED)
    with pytest.raises(ValueError):
        fit([])


def measured(**changes: Any) -> Measurement:
    base: dict[str, Any] = {
        "created": "2026-11-24", "model": "m", "config_sha256": None, "run": RunConfig(), "outcome": "ok",
        "gpu": CardReading(name="NVIDIA H200"), "step_s": (9.0, 1.0, 3.0, 2.0), "nvml": NvmlReading(others_bytes=0),
    }  # fmt: skip
    return Measurement(**{**base, **changes})


def test_only_runs_that_had_the_card_for_themselves_are_timed() -> None:
    assert timed(measured()) == 2.0  # the median, without the step that warms up
    shared = NvmlReading(others_bytes=1 << 30)
    assert timed(measured(nvml=shared)) is None
    assert timed(measured(nvml=NvmlReading())) is None  # nobody could see
    assert timed(measured(nvml=shared, notes=(EXCLUSIVE,))) == 2.0
    for change in ({"outcome": "error"}, {"device": "cpu"}, {"cap_bytes": 1 << 30}, {"step_s": (9.0,)}):
        assert timed(measured(**change)) is None


def test_a_calibration_keeps_the_speed_of_its_cards() -> None:
    speed = {"h200": replace(ASSUMED, count=3, mean_abs_log=0.1)}
    kept = Calibration(created="2026-11-24", speed=speed)
    document = json.loads(json.dumps(kept.to_dict()))
    assert calibration_from_dict(document) == kept
    mine = Calibration(created="2026-11-25", speed={"h200": ASSUMED})
    both = pooled([mine, kept])
    assert both is not None and both.speed["h200"] == ASSUMED
    profile = MODELS.load(NAMES[0])
    run = resolve(profile, RunConfig(), H200).run
    assert speed_of(profile, run, H200, kept).basis is Basis.CALIBRATED
    document["speed"]["h200"] |= {"launch_s": -1, "count": 2.5}
    with pytest.raises(InputError, match=r"speed.h200.launch_s .*speed.h200.count"):
        calibration_from_dict(document)


@pytest.mark.skipif(not TIMINGS.exists(), reason="no timings of an H200 are kept here")
def test_held_out_timings_of_an_h200() -> None:
    known = read_calibration([PROFILES / "calibrations"])
    rows = []
    for one in measurements_in([TIMINGS]):
        seconds, profile = timed(one), MODELS.load(one.model)
        if one.role != "holdout" or seconds is None or one.config_sha256 not in (None, profile.config_sha256):
            continue
        found = speed_of(profile, one.run, H200, known, one.stack)
        assert found.basis is Basis.CALIBRATED and found.step_s is not None
        rows.append((found.step_s, seconds))
    assert len(rows) >= 10
    close = [abs(predicted / real - 1) <= 0.25 for predicted, real in rows]
    assert sum(close) >= 0.9 * len(rows)
    pairs = [(a, b) for a, b in combinations(rows, 2)]
    right = sum((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in pairs)
    assert right >= 0.85 * len(pairs)
