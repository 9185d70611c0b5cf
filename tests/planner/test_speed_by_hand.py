"""The speed model where data sheets, configs and the makers of masks say what it must give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

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
from qlora_planner.speed.step import StepWork, setting_of, step_work
from qlora_planner.speed.work import BASIS, Vector, Work, evaluator, terms, values

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


LLAMA = MODELS.load("meta-llama/Llama-3.1-8B")
LAYERS, HIDDEN, MLP, VOCAB, RANK = 32, 4096, 14336, 128_256, 16
# 2 x (q, o) + 2 x (k, v) + 3 x MLP of its config; PEFT's own count of adapters on all of them.
LINEARS, IN_LINEARS, TRAINABLE = 7, 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336, 41_943_040


def step_of(**options: Any) -> StepWork:
    return step_work(LLAMA, resolve(LLAMA, RunConfig(rank=RANK, **options), H200))


def coefficients(more: StepWork, less: StepWork, quantity: str) -> dict[str, float]:
    """What a step of `more` has beyond one of `less`, by the sizes that it grows with."""
    gap: Vector = getattr(more.micro, quantity) - getattr(less.micro, quantity)
    return {name: float(value) for name, value in zip(BASIS, gap, strict=True) if value}


def test_reading_a_4bit_weight_reads_its_constants_in_every_pass() -> None:
    """A block of 64 weights has a float32 constant. Quantised themselves (bitsandbytes, dequantize_blockwise and an
    addition), they are read as one byte, written and read as float32, and written once more."""
    double, single = (step_of(double_quant=on, lora_dropout=0.0) for on in (True, False))
    passes = 3  # forward, forward again under checkpointing, backward
    assert coefficients(double, single, "traffic") == {"one": LAYERS * IN_LINEARS / 64 * (17 - 4) * passes}
    assert coefficients(double, single, "launches") == {"one": LAYERS * LINEARS * 2 * 2}
    assert coefficients(double, single, "engine_launches") == {"one": LAYERS * LINEARS * 2}


def test_a_recompute_ends_before_what_backward_does_not_need() -> None:
    """torch.utils.checkpoint stops at the last saved tensor, unless reentrant: B(A(x)) of the MLP's last layer is not
    made again, nor scaled, added and added to the stream."""
    whole, stopped = (step_of(use_reentrant=on, trainer="hf-trainer") for on in (True, False))
    product = 2 * HIDDEN * LAYERS
    flops = [coefficients(whole, stopped, f"{unit}_flops").get("tokens_rank", 0) for unit in ("half", "float")]
    assert sorted(flops) == [0, product]
    assert coefficients(whole, stopped, "launches") == {"one": 4 * LAYERS}
    # Where that layer has no adapter, its own product is the last.
    whole, stopped = (step_of(use_reentrant=on, target_modules="attention") for on in (True, False))
    assert coefficients(whole, stopped, "half_flops") == {"tokens": 2 * HIDDEN * MLP * LAYERS}


def test_liger_reads_the_head_twice_for_each_chunk_of_its_rows() -> None:
    """liger_kernel, ops/fused_linear_cross_entropy.py: as many chunks as the vocabulary is wider than the stream; the
    logits of one are written, turned into gradients in place and read by the product with the head."""
    doubled = replace(LLAMA, dims={**LLAMA.dims, "vocab_size": 2 * VOCAB})
    wide, plain = (
        step_work(profile, resolve(profile, RunConfig(rank=RANK, trainer="hf-trainer", liger=True), H200))
        for profile in (doubled, LLAMA)
    )
    chunks, head_bytes = VOCAB / HIDDEN, 2 * VOCAB * HIDDEN
    traffic = coefficients(wide, plain, "traffic")
    assert traffic.pop("tokens") == 5 * 2 * VOCAB
    # Twice as many chunks of a head twice as large: three times as much more.
    assert traffic == {"one": pytest.approx(3 * 2 * chunks * head_bytes)}
    assert coefficients(wide, plain, "launches") == {"one": pytest.approx(6 * chunks)}


@pytest.mark.parametrize(
    ("optimizer", "state_bytes", "tensors"),
    [
        ("sgd", 0, 0.15),  # torch takes tensors in lists
        ("adamw_torch", 4, 0.15),  # two numbers as wide as the 16-bit adapters
        ("adamw_8bit", 2 * (1 + 4 / 256), 1),  # two bytes, and a float32 constant for 256 of each
    ],
)
def test_a_step_of_the_optimizer_reads_and_writes_what_it_keeps(
    optimizer: str, state_bytes: float, tensors: float
) -> None:
    """The norm reads the gradient, clipping reads and writes it, the step reads it and reads and writes weight and
    states: 6 x 2 bytes of each 16-bit adapter weight, and its states twice."""
    step = step_of(optimizer=optimizer)
    moved = step.optimizer_fixed + RANK * step.optimizer_per_rank
    assert moved == pytest.approx(TRAINABLE * (12 + 2 * state_bytes), rel=0.002)
    assert step.tensor_steps == pytest.approx(LAYERS * LINEARS * 2 * tensors)
    # All of it grows with the rank, from wherever it is looked at.
    first = step_work(LLAMA, resolve(LLAMA, RunConfig(rank=1, optimizer=optimizer), H200))
    assert first.optimizer_per_rank == pytest.approx(step.optimizer_per_rank, rel=0.03)
    assert abs(step.optimizer_fixed) < 0.02 * moved


def test_rows_packed_without_flash_attention_meet_all_rows() -> None:
    """Four rows of 1,024 end to end have one mask of 4,096 by 4,096, as one row of 4,096 that is packed has."""
    packed = speed_model(LLAMA, resolve(LLAMA, RunConfig(packing=True, attention="sdpa"), H200), H200)
    flash = speed_model(LLAMA, resolve(LLAMA, RunConfig(packing=True, attention="flash_attention_2"), H200), H200)
    assert packed is not None and flash is not None
    assert packed.step_s(4, 1024, RANK) == packed.step_s(1, 4096, RANK)
    assert flash.step_s(4, 1024, RANK) < flash.step_s(1, 4096, RANK)
