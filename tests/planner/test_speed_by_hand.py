"""The speed model where data sheets, configs and the makers of masks say what it must give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qlora_planner.catalog import trainer_row
from qlora_planner.catalog.gpus import GpuCatalogue, parse_gpu
from qlora_planner.evidence.efficiency import ASSUMED
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.records import Basis
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.evidence import read_calibration
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.layers import layers_of
from qlora_planner.speed.roofline import Rates, card_seconds, efficiency_of, speed_model
from qlora_planner.speed.step import setting_of
from qlora_planner.speed.work import Work, evaluator, terms, values

PROFILES = Path(__file__).parents[2] / "profiles"
MODELS = ModelCatalogue([PROFILES / "models"])
H200 = parse_gpu("h200", GpuCatalogue([PROFILES / "gpus"]))


def test_a_sequence_as_long_as_the_window_is_masked_already() -> None:
    """transformers leaves out the mask of a sliding layer for fewer positions than its window alone."""
    resolution = resolve(MODELS.load("google/gemma-2-2b"), RunConfig(), H200)
    model = speed_model(MODELS.load("google/gemma-2-2b"), resolution, H200)
    assert model is not None
    before, last, masked = (float(model.step_s(1, 4096 + more, 16)) for more in (-2, -1, 0))
    assert masked - last > 20 * (last - before)


@pytest.mark.parametrize(
    ("model", "windows"),
    [
        ("google/gemma-2-2b", {4096, None}),  # every other layer
        ("mistralai/Mistral-7B-v0.1", {4096}),
        ("meta-llama/Llama-3.1-8B", {None}),
    ],
)
def test_only_layers_that_slide_have_a_window(model: str, windows: set[int | None]) -> None:
    profile = MODELS.load(model)
    resolution = resolve(profile, RunConfig())
    trainer, _ = trainer_row(resolution.run.trainer or "", resolution.stack)
    placement = Placement(profile, resolution.run)
    layers = layers_of(placement, setting_of(placement, trainer))
    assert {layer.window for layer in layers} == windows


def test_int8_products_take_half_as_long_as_those_of_halves() -> None:
    """By NVIDIA's data sheets, from the T4 to the H200."""
    rates = Rates.of(H200, "bfloat16")
    assert rates is not None
    sizes = values(1, 1024, 16, 4096, 0)
    half, int8, single = (
        evaluator(card_seconds(Work(**{f"{unit}_flops": terms(tokens=1e9)}), rates, ASSUMED))(sizes)
        for unit in ("half", "int8", "float")
    )
    assert int8 == pytest.approx(half / 2)
    assert single > 4 * half


def test_a_measured_card_is_known_by_its_label_too() -> None:
    known = read_calibration([PROFILES / "calibrations"])
    same = replace(H200, name="the-one-in-the-cellar")
    assert efficiency_of(same, known)[1] is Basis.CALIBRATED
    other = replace(H200, name="the-one-in-the-cellar", label="NVIDIA H999")
    assert efficiency_of(other, known) == (ASSUMED, Basis.ASSUMED)
