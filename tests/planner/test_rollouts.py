"""Runs that generate: what their options become, what is refused, what a plan turns and gives up."""

from __future__ import annotations

import pytest

from qlora_planner import load_gpu, load_model
from qlora_planner.errors import InputError
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.closed_form.estimate import closed_form_breakdown
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import Resolution, resolve
from qlora_planner.memory.records import Fit
from qlora_planner.planner.fallbacks import fallbacks
from qlora_planner.planner.knobs import KNOBS, in_whole_groups
from qlora_planner.planner.search_space import search_space
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.roofline import speed_of

LLAMA = load_model("llama-3.1-8b")
H100 = load_gpu("h100-80gb")


def resolved(**options: object) -> Resolution:
    usual: dict[str, object] = {"trainer": "trl-grpo", "batch_size": 8}
    return resolve(LLAMA, RunConfig(**(usual | options)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "prompt", "completion", "sequence"),
    [
        ({}, 1536, 512, 2048),
        ({"seq_len": 600}, 300, 300, 600),
        ({"seq_len": 1000, "completion_len": 300}, 700, 300, 1000),
        ({"prompt_len": 100}, 100, 512, 612),
        ({"prompt_len": 100, "completion_len": 50}, 100, 50, 150),
    ],
)
def test_a_sequence_is_a_prompt_and_a_completion(
    options: dict[str, int], prompt: int, completion: int, sequence: int
) -> None:
    run = resolved(**options).run
    assert (run.prompt_len, run.completion_len, run.seq_len) == (prompt, completion, sequence)
    assert resolve(LLAMA, run).run == run


def test_what_is_left_open_is_as_trl_has_it() -> None:
    grpo, rloo = resolved(grad_accum=4).run, resolved(trainer="trl-rloo").run
    assert (grpo.loss_type, grpo.beta, grpo.num_generations) == ("dapo", 0.0, 8)
    assert (grpo.num_iterations, grpo.steps_per_generation, grpo.padding) == (1, 4, True)
    assert (rloo.loss_type, rloo.beta, rloo.num_generations) == (None, 0.05, 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 1}, "--batch-size 8"),
        ({"batch_size": 6, "grad_accum": 2}, "--batch-size 8"),
        ({"num_generations": 1}, "--num-generations 2"),
        ({"method": "full", "beta": 0.1}, "--beta 0, or train adapters"),
        ({"eval_batch_size": 8}, "no --eval-batch-size"),
        ({"checkpoint_every": 2}, "--checkpoint-every 1"),
        ({"parallel": "fsdp2", "optimizer": "adamw_torch_fused"}, "--parallel ddp"),
        ({"stack": {"trl": "1.13"}}, "--stack trl=1.16"),
    ],
)
def test_what_trl_refuses_or_nobody_models_is_refused_with_a_way_out(options: dict[str, object], says: str) -> None:
    assert [problem.fix for problem in resolved(**options).problems if problem.blocking] == [says]


@pytest.mark.parametrize("options", [{"batch_size": 2, "grad_accum": 4}, {"batch_size": 8, "num_generations": 4}])
def test_groups_may_lie_across_micro_batches(options: dict[str, object]) -> None:
    assert not [problem for problem in resolved(**options).problems if problem.blocking]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"loss_type": "sigmoid"}, "trl-grpo has dapo, grpo"),
        ({"trainer": "trl-rloo", "loss_type": "dapo"}, "trl-rloo has one loss"),
        ({"completion_len": 4096}, "leaves no prompt of --seq-len 2,048"),
    ],
)
def test_bad_values_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        resolved(**options)


def test_options_of_generation_are_refused_by_other_trainers() -> None:
    problems = resolved(trainer="trl-sft", num_generations=8).problems
    assert [problem.fix for problem in problems if problem.blocking] == ["--trainer trl-grpo"]


def turned(run: RunConfig) -> dict[str, object]:
    return {name: value for knob in KNOBS for name, value in (knob.turn(run) or {}).items() if value is not None}


def test_knobs_turn_completions_in_place_of_sequences() -> None:
    run = resolved(grad_accum=4).run
    changes = turned(run)
    assert (changes["completion_len"], changes["steps_per_generation"]) == (256, 2)
    assert "seq_len" not in changes
    assert "completion_len" not in turned(resolve(LLAMA, RunConfig()).run)


def test_a_smaller_micro_batch_keeps_the_completions_of_a_step_together() -> None:
    run = resolved().run
    halved = next(knob.turn(run) for knob in KNOBS if knob.name == "batch_size")
    assert halved == {"batch_size": 4, "grad_accum": 2, "steps_per_generation": None}
    assert resolve(LLAMA, run.with_(**halved)).run.steps_per_generation == 2


def test_the_ladder_gives_up_completions_at_a_time_before_their_length() -> None:
    rungs = [says for _, says in fallbacks(resolved(grad_accum=2, num_generations=4).run)]
    assert rungs == [
        "micro-batches of 4, 4 of them a step: the same effective batch and schedule",
        "micro-batches of 2, 8 of them a step: the same effective batch and schedule",
        "micro-batches of 1, 16 of them a step: the same effective batch and schedule",
        "8 completions generated at a time: slower, the same prompts and groups",
        "4 completions generated at a time: slower, the same prompts and groups",
        "COMPLETIONS CUT TO 256 TOKENS: this is another training",
    ]


def test_a_search_tries_batches_of_whole_groups() -> None:
    run = RunConfig(trainer="trl-grpo", grad_accum=1)
    fixed = frozenset({"trainer", "grad_accum"})
    assert search_space(LLAMA, run, fixed).batches == (8, 16, 32, 64)
    assert search_space(LLAMA, RunConfig(), fixed).batches[0] == 1


def test_a_survey_accumulates_until_groups_are_whole() -> None:
    assert in_whole_groups(RunConfig(trainer="trl-grpo")).grad_accum == 8
    assert in_whole_groups(RunConfig(trainer="trl-grpo", batch_size=16)).grad_accum == 1
    assert in_whole_groups(RunConfig()).grad_accum == 1


def generated(**options: object) -> int:
    resolution = resolved(**options)
    phases = closed_form_breakdown(LLAMA, resolution, Budget.of(H100).for_run(resolution.run)).phases
    return next(phase.allocated_bytes or 0 for phase in phases if phase.name == "generate")


def test_closed_forms_hold_keys_and_values_of_everything_generated_together() -> None:
    short, long = generated(prompt_len=64, completion_len=512), generated(prompt_len=64, completion_len=1536)
    # Keys and values of 8 heads of 128 in 16 bits, in 32 layers, for 1,024 tokens more of 8 completions.
    assert long - short == 8 * 1024 * 32 * 2 * 8 * 128 * 2
    assert generated(grad_accum=4) > generated()


def test_the_speed_of_a_run_that_generates_is_unknown() -> None:
    assert speed_of(LLAMA, resolved().run, H100).step_s is None
    assert speed_of(LLAMA, resolve(LLAMA, RunConfig()).run, H100).step_s is not None


def fit_of(**options: object) -> Fit:
    fit = estimate(LLAMA, resolved(**options).run, gpu=load_gpu("24GB")).fit
    assert fit is not None
    return fit


def test_vllm_takes_its_part_of_the_card_from_the_trainer() -> None:
    usable = fit_of(vllm="none").usable_bytes
    assert usable - fit_of(vllm="colocate").usable_bytes == int(0.3 * usable)
    half = fit_of(vllm="colocate", vllm_gpu_memory_utilization=0.5)
    assert usable - half.usable_bytes == usable // 2
    assert "vLLM holds" in half.reasons[0]


def test_a_plan_is_made_for_what_vllm_leaves() -> None:
    small = load_gpu("16GB")
    short = {"prompt_len": 128, "completion_len": 128}
    alone = estimate(LLAMA, resolved(vllm="server", **short).run, gpu=small)
    beside = estimate(LLAMA, resolved(vllm="colocate", vllm_gpu_memory_utilization=0.6, **short).run, gpu=small)
    assert (alone.verdict, beside.verdict) == ("fits", "does-not-fit")


def test_generating_elsewhere_holds_no_keys_and_values() -> None:
    for mode in ("server", "colocate"):
        assert generated(vllm=mode, completion_len=512) == generated(vllm=mode, completion_len=64) < generated()


@pytest.mark.parametrize("option", [{"vllm_gpu_memory_utilization": 0.5}, {"vllm_enable_sleep_mode": True}])
def test_options_of_a_colocated_vllm_are_of_no_other(option: dict[str, object]) -> None:
    with pytest.raises(InputError, match="--vllm colocate"):
        resolved(vllm="server", **option)
