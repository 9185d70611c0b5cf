"""Unsloth's own code decides what its step takes: without a trace of it nothing is said that another trainer would."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_planner import RunConfig, load_gpu, load_model
from qlora_planner.errors import InputError
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.records import Component
from qlora_planner.memory.unmodelled.left_out import guessed
from qlora_planner.session.packages import check_executable
from qlora_planner.session.towers import with_tower
from qlora_planner.session.traces import tape_for
from qlora_planner.speed.roofline import speed_of

RUN = RunConfig(trainer="unsloth")
NAMES = ("unsloth", "trl-sft")


@pytest.mark.parametrize(("model", "verdict"), [("llama-3.1-8b", "cannot-say"), ("llama-3.1-70b", "does-not-fit")])
def test_without_a_trace_nobody_can_say_unless_its_weights_alone_are_too_large(model: str, verdict: str) -> None:
    answer = estimate(load_model(model), RUN, load_gpu("24GB"))
    assert answer.fit is not None and answer.fit.verdict == verdict
    assert [thing.key for thing in answer.unmodelled] == ["--trainer unsloth"] * 2


def test_a_figure_without_a_trace_of_it_is_no_prediction_of_a_run() -> None:
    profile, card = load_model("llama-3.1-8b"), load_gpu("24GB")
    assert "known by a trace alone" in str(guessed(estimate(profile, RUN, card), profile))
    assert guessed(estimate(profile, RunConfig(trainer="trl-sft"), card), profile) is None
    traced = tape_for(profile, RUN, card, stored_only=True)
    assert guessed(estimate(profile, RUN, card, tape=traced), profile) is None


def test_weights_stay_in_16_bits_and_adapters_are_float32() -> None:
    profile = load_model("llama-3.1-8b")
    own, trl = (estimate(profile, RunConfig(trainer=name)).components for name in NAMES)
    assert own[Component.UNQUANTIZED_WEIGHTS.value] == trl[Component.UNQUANTIZED_WEIGHTS.value]
    assert own[Component.ADAPTERS.value] == 2 * trl[Component.ADAPTERS.value]


def test_adapters_have_no_dropout_unless_it_is_asked_for() -> None:
    profile = load_model("llama-3.1-8b")
    assert estimate(profile, RUN).run.lora_dropout == 0.0
    assert estimate(profile, RUN.with_(lora_dropout=0.1)).run.lora_dropout == 0.1


@pytest.mark.parametrize(("model", "sizes"), [("llama-3.1-8b", {}), ("Qwen/Qwen3-8B", {"batch_size": 4})])
def test_models_that_are_asked_for_most_are_answered_without_unsloth(model: str, sizes: dict[str, int]) -> None:
    profile, run, card = load_model(model), RUN.with_(**sizes), load_gpu("24GB")
    tape = tape_for(profile, run, card, stored_only=True)
    assert tape is not None
    answer = estimate(profile, run, card, tape=tape)
    assert answer.fit is not None and answer.fit.verdict == "fits" and answer.method == "traced"
    # Two buffers on the card hold one layer's input each; the others wait on the host.
    layers, hidden = profile.dims["num_hidden_layers"], profile.dims["hidden_size"]
    assert answer.host.offloaded_bytes == layers * 2 * hidden * run.batch_size * run.seq_len
    assert answer.components[Component.CHECKPOINTS.value] <= 2 * 2 * hidden * run.batch_size * run.seq_len


def test_a_verdict_that_compiled_layers_could_change_is_nobody_s() -> None:
    profile, card = load_model("llama-3.1-8b"), load_gpu("7GiB")
    tape = tape_for(profile, RUN, card, stored_only=True)
    answer = estimate(profile, RUN, card, tape=tape)
    assert answer.fit is not None and answer.fit.verdict == "cannot-say"
    assert "UNSLOTH_BLOCK_COMPILE" in " ".join(answer.fit.reasons)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_packed_rows_are_rows_end_to_end_as_every_batch_and_none_of_their_layers_is_compiled(batch_size: int) -> None:
    profile, card = load_model("llama-3.1-8b"), load_gpu("rtx-4090")
    apart, packed = (
        estimate(profile, run, card, tape=tape_for(profile, run, card, stored_only=True))
        for run in (RUN.with_(batch_size=batch_size, packing=packing) for packing in (False, True))
    )
    assert packed.method == "traced" and packed.phases == apart.phases
    named = [[thing.key for thing in answer.unmodelled] for answer in (apart, packed)]
    assert ["UNSLOTH_BLOCK_COMPILE" in " ".join(keys) for keys in named] == [True, False]
    assert packed.peak.high_bytes < apart.peak.high_bytes


@pytest.mark.parametrize("images", [{}, {"images": 1, "image_size": "640x480"}], ids=["text", "images"])
def test_a_model_that_is_compiled_whole_is_nobodys_to_say_and_the_reason_offers_no_install(
    images: dict[str, Any],
) -> None:
    run = RUN.with_(**images)
    profile = with_tower(load_model("Qwen/Qwen2.5-VL-3B-Instruct"), run)
    answer = estimate(profile, run, load_gpu("h200"))
    assert answer.verdict == "cannot-say" and answer.fit is not None
    (reason,) = (reason for reason in answer.fit.reasons if "--trainer unsloth" in reason)
    assert "no layers of its own for qwen2_5_vl" in reason and "install" not in reason
    assert tape_for(profile, run, load_gpu("h200")) is None


def test_a_run_with_images_is_not_executed_by_a_trainer_whose_rows_are_texts() -> None:
    with pytest.raises(InputError, match="--trainer unsloth with images is planned and not executed"):
        check_executable(RUN.with_(images=1, image_size="640x480"), "cuda")


def test_a_run_that_its_loader_has_no_word_for_is_refused() -> None:
    answer = estimate(load_model("llama-3.1-8b"), RUN.with_(quant="fp4"), load_gpu("24GB"))
    assert answer.verdict == "will-not-run"
    assert "--quant nf4" in answer.problems[0].fix


def test_nobody_timed_it_and_no_other_trainer_s_speed_is_given() -> None:
    profile = load_model("llama-3.1-8b")
    speeds = [speed_of(profile, resolve(profile, RunConfig(trainer=name)).run, load_gpu("h200")) for name in NAMES]
    assert [speed.tokens_per_s is None for speed in speeds] == [True, False]
