"""Unsloth's own code decides what its step takes: without a trace of it nothing is said that another trainer would."""

from __future__ import annotations

import pytest

from qlora_planner import RunConfig, load_gpu, load_model
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.records import Component

RUN = RunConfig(trainer="unsloth")


@pytest.mark.parametrize(("model", "verdict"), [("llama-3.1-8b", "cannot-say"), ("llama-3.1-70b", "does-not-fit")])
def test_without_a_trace_nobody_can_say_unless_its_weights_alone_are_too_large(model: str, verdict: str) -> None:
    answer = estimate(load_model(model), RUN, load_gpu("24GB"))
    assert answer.fit is not None and answer.fit.verdict == verdict
    assert [thing.key for thing in answer.unmodelled] == ["--trainer unsloth"] * 2


def test_weights_stay_in_16_bits_and_adapters_are_float32() -> None:
    profile = load_model("llama-3.1-8b")
    own, trl = (estimate(profile, RunConfig(trainer=name)).components for name in ("unsloth", "trl-sft"))
    assert own[Component.UNQUANTIZED_WEIGHTS.value] == trl[Component.UNQUANTIZED_WEIGHTS.value]
    assert own[Component.ADAPTERS.value] == 2 * trl[Component.ADAPTERS.value]


def test_adapters_have_no_dropout_unless_it_is_asked_for() -> None:
    profile = load_model("llama-3.1-8b")
    assert estimate(profile, RUN).run.lora_dropout == 0.0
    assert estimate(profile, RUN.with_(lora_dropout=0.1)).run.lora_dropout == 0.1
