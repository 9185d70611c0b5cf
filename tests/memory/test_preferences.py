"""Runs on preferences: what their lengths become, what they count, and what trl refuses."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_planner import estimate, load_model
from qlora_planner.catalog.trainers import DIVERGENCE, POLICY, REFERENCE
from qlora_planner.errors import InputError
from qlora_planner.memory.options.resolve import Resolution, resolve
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.memory.weights.static import static_memory
from qlora_planner.spec.lengths import Lengths, lengths_of
from qlora_planner.spec.run import RunConfig

LLAMA = load_model("llama-3.1-8b")


def resolved(**options: object) -> Resolution:
    return resolve(LLAMA, RunConfig(**{"trainer": "trl-dpo", **options}))  # type: ignore[arg-type]


def lengths(**options: object) -> tuple[int, int, int]:
    run = resolved(**options).run
    shared = lengths_of(run)
    return run.seq_len, shared.prompt, shared.completion


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (2048, 1024, 1024)),
        ({"seq_len": 1000, "prompt_len": 300}, (1000, 300, 700)),
        ({"seq_len": 1000, "completion_len": 300}, (1000, 700, 300)),
        ({"prompt_len": 256, "completion_len": 512}, (768, 256, 512)),
        ({"prompt_len": 256, "completion_len": 512, "max_length": 1024}, (768, 256, 512)),
        ({"prompt_len": 256, "completion_len": 512, "max_length": 512}, (512, 256, 256)),
        ({"max_length": 4096}, (4096, 2048, 2048)),
    ],
)
def test_prompts_are_kept_and_completions_cut(options: dict[str, int], expected: tuple[int, int, int]) -> None:
    assert lengths(**options) == expected


def test_a_run_is_the_same_when_it_is_resolved_again() -> None:
    run = resolved(prompt_len=256, completion_len=512, max_length=512).run
    assert resolve(LLAMA, run).run == run
    assert lengths_of(run) == Lengths(prompt=256, completion=256)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompt_len": 512, "max_length": 512}, "nothing of a completion is left"),
        ({"prompt_len": 2048}, "--prompt-len 2,048 fills --seq-len 2,048"),
        ({"trainer": "trl-orpo", "prompt_len": 600, "max_length": 512}, "--prompt-len 600 fills --max-length 512"),
        ({"completion_len": 4096}, "longer than the sequence"),
        ({"loss_type": "wpo"}, "--loss-type 'wpo': trl-dpo has sigmoid, hinge"),
        ({"trainer": "trl-kto", "loss_type": "sigmoid"}, "trl-kto has kto, apo_zero_unpaired"),
        ({"method": "full"}, "second model as the reference"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        resolved(**options)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"trainer": "trl-kto"}, "batch-refused"),
        ({"loss_type": "exo_pair"}, "loss-refused"),
        ({"packing": True}, "packing-refused"),
        ({"trainer": "trl-sft", "beta": 0.2}, "beta-refused"),
        ({"trainer": "hf-trainer", "precompute_ref_log_probs": True}, "precompute-ref-log-probs-refused"),
        ({"target_modules": "q_proj,lm_head"}, "targets-refused"),
        ({"trainer": "trl-orpo", "upcast": False}, "upcast-refused"),
        ({"trainer": "trl-orpo", "precompute_ref_log_probs": True}, "precompute-ref-log-probs-refused"),
    ],
)
def test_what_trl_refuses_is_a_blocking_problem(options: dict[str, object], code: str) -> None:
    assert code in [problem.code for problem in resolved(**options).problems if problem.blocking]


def test_a_batch_of_one_completion_runs_where_no_divergence_is_estimated() -> None:
    runs = resolved(trainer="trl-kto", loss_type="apo_zero_unpaired"), resolved(trainer="trl-kto", batch_size=2)
    assert not any(problem.blocking for one in runs for problem in one.problems)


def test_a_reward_model_reads_whole_texts() -> None:
    resolution = resolved(trainer="trl-reward", completion_len=512)
    assert (resolution.run.seq_len, resolution.run.loss_type) == (512, None)
    assert (resolution.trainer.passes, resolution.trainer.batch_unit) == ((POLICY,), "pairs")
    assert resolved(trainer="trl-reward", prompt_len=100, completion_len=512).run.seq_len == 612
    assert "loss-type-refused" in [problem.code for problem in resolved(trainer="trl-reward", loss_type="ipo").problems]


def test_passes_follow_the_loss_and_the_reference() -> None:
    assert resolved().trainer.passes == (POLICY, REFERENCE)
    assert resolved(precompute_ref_log_probs=True).trainer.passes == (POLICY,)
    kto = {"trainer": "trl-kto", "batch_size": 2}
    assert resolved(**kto).trainer.passes == (DIVERGENCE, POLICY, REFERENCE, REFERENCE)
    assert resolved(**kto, precompute_ref_log_probs=True).trainer.passes == (DIVERGENCE, POLICY)
    assert resolved(**kto, loss_type="apo_zero_unpaired").trainer.passes == (POLICY, REFERENCE)


def test_dropout_is_off_and_a_pair_is_padded() -> None:
    resolution = resolved()
    assert resolution.run.lora_dropout == 0.0 and resolution.run.padding
    assert "switches dropout off" in resolution.why["lora_dropout"]
    assert not resolve(LLAMA, RunConfig()).run.padding


def test_other_trainers_answer_as_before() -> None:
    run = resolve(LLAMA, RunConfig()).run
    assert {run.prompt_len, run.completion_len, run.max_length, run.loss_type, run.beta} == {None}


@pytest.mark.parametrize(
    ("options", "prepared", "kept"),
    [
        ({}, "float32", "bfloat16"),
        ({"compute_dtype": "float16"}, "float32", "float32"),
        ({"quant": "int8"}, "float32", "float32"),
        ({"method": "lora"}, "bfloat16", "bfloat16"),
    ],
)
def test_orpo_casts_a_4_bit_base_s_embeddings_to_float32_and_back(
    options: dict[str, Any], prepared: str, kept: str
) -> None:
    placement = Placement(LLAMA, resolved(trainer="trl-orpo", **options).run)
    weights = {tensor.group.name: (tensor.dtype, tensor.kept_dtype) for tensor in placement.weights}
    assert weights["model.embed_tokens.weight"] == weights["lm_head.weight"] == (prepared, kept)
    assert weights["model.norm.weight"] == (prepared, prepared)
    assert static_memory(placement).cast_back == (2 * 2 * 128256 * 4096 if prepared != kept else 0)


def test_what_is_trained_of_a_head_that_is_cast_back_is_named() -> None:
    run = RunConfig(trainer="trl-orpo", modules_to_save="lm_head")
    named = [thing.what for thing in estimate(LLAMA, run).unmodelled]
    assert any("casts what is trained of embeddings and head" in what for what in named)
    assert not any("casts what" in thing.what for thing in estimate(LLAMA, RunConfig(trainer="trl-orpo")).unmodelled)


@pytest.mark.parametrize(
    "trainer", ["trl-dpo", "trl-kto", "trl-grpo", "trl-rloo", "trl-reward", "trl-sft", "hf-trainer"]
)
def test_before_training_adapters_are_as_the_trainer_holds_them(trainer: str) -> None:
    static = estimate(LLAMA, RunConfig(trainer=trainer, seq_len=512, upcast=False), gpu="h200").static
    trained = 41_943_040 * 2
    halves = trainer != "hf-trainer"  # transformers' Trainer casts nothing
    assert static.after_adapters - static.before_training == (trained if halves else 0)
