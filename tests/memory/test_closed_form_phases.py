"""What each phase and component of a closed form holds, against counts of the model and laws of a training step."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_planner.memory import Component, MemoryEstimate
from qlora_planner.memory.estimate import estimate
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.spec.run import RunConfig
from tests.memory.test_estimate import H200

CATALOGUE = ModelCatalogue([Path(__file__).parents[2] / "profiles" / "models"])
LLAMA, QWEN = CATALOGUE.load("meta-llama/Llama-3.1-8B"), CATALOGUE.load("Qwen/Qwen2.5-0.5B")
# PEFT's own counts for rank 16 on every linear (profiles/measurements/h200-timings.jsonl; tests/data/truth).
LLAMA_TRAINABLE, QWEN_TRAINABLE = 41_943_040, 8_798_208


def phase_bytes(estimated: MemoryEstimate, name: str) -> int:
    return next(phase.allocated_bytes or 0 for phase in estimated.phases if phase.name == name)


def test_states_of_the_optimizer_are_there_when_a_checkpoint_is_saved() -> None:
    """AdamW keeps two 16-bit numbers of each 16-bit adapter weight, SGD none."""
    adam, sgd = (estimate(LLAMA, RunConfig(optimizer=name), H200) for name in ("adamw_torch", "sgd"))
    states_bytes = phase_bytes(adam, "save") - phase_bytes(sgd, "save")
    assert states_bytes == pytest.approx(2 * 2 * LLAMA_TRAINABLE, rel=0.001)


def test_full_fine_tuning_holds_its_weights_once() -> None:
    whole = estimate(LLAMA, RunConfig(method="full", quant="none", optimizer="sgd"), H200)
    assert phase_bytes(whole, "save") == pytest.approx(2 * LLAMA.params, rel=0.02)


def test_offloading_moves_one_input_of_every_layer_to_the_host() -> None:
    moved, none = (estimate(LLAMA, RunConfig(activation_offloading=on, seq_len=1024), H200) for on in (True, False))
    assert moved.host.offloaded_bytes == 32 * 2 * 4096 * 1024
    assert none.host.offloaded_bytes == 0


@pytest.mark.parametrize(("grad_accum", "kept"), [(1, 0), (2, 4 * QWEN_TRAINABLE), (8, 4 * QWEN_TRAINABLE)])
def test_where_logits_are_the_peak_only_earlier_micro_batches_have_left_gradients(grad_accum: int, kept: int) -> None:
    """transformers' Trainer keeps float32 adapters, and so float32 gradients."""
    run = RunConfig(trainer="hf-trainer", seq_len=2048, grad_accum=grad_accum)
    components = estimate(QWEN, run, H200).components
    assert components[Component.LOGITS_AND_LOSS.value] > 12 * 151_936 * 2048
    assert components[Component.GRADIENTS.value] == pytest.approx(kept, rel=0.01)


def test_where_a_layer_is_the_peak_its_gradients_are_there_and_no_logits() -> None:
    components = estimate(LLAMA, RunConfig(seq_len=8192), H200).components
    assert components[Component.LOGITS_AND_LOSS.value] == 0
    assert components[Component.GRADIENTS.value] == pytest.approx(2 * LLAMA_TRAINABLE, rel=0.001)
    assert components[Component.CHECKPOINTS.value] == 32 * 2 * 4096 * 8192
