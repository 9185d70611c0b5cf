"""Copies of a run with some options changed, and keys of the options that matter to a figure."""

from __future__ import annotations

import pytest

from qlora_planner.errors import InputError
from qlora_planner.spec.run import RUN_FIELDS, RunConfig, options_without


def test_a_copy_differs_in_what_was_changed_alone() -> None:
    run = RunConfig(stack={"trl": "1.16.0"})
    copy = run.with_(rank=64, batch_size=2)
    assert (run.rank, run.batch_size) == (16, 1)
    assert copy == RunConfig(stack={"trl": "1.16.0"}, rank=64, batch_size=2)


@pytest.mark.parametrize(("changes", "says"), [({"rank": 0}, "--rank"), ({"rnak": 8}, "unknown option rnak")])
def test_a_bad_change_is_refused(changes: dict[str, int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        RunConfig().with_(**changes)


def test_a_key_knows_every_option_but_those_left_out() -> None:
    changed = {
        "method": "lora", "quant": "fp4", "double_quant": False, "compute_dtype": "float16", "load_dtype": "float16",
        "seq_len": 7, "batch_size": 7, "grad_accum": 7, "rank": 7, "alpha": 7, "target_modules": "q_proj",
        "lora_dropout": 0.5, "dora": True, "rslora": True, "modules_to_save": "lm_head",
        "checkpoint_every": 7, "checkpoint_offload": True, "loss_kernel": "full", "expert_quant": "none",
        "gradient_checkpointing": False, "use_reentrant": True, "attention": "eager", "optimizer": "sgd",
        "trainer": "loop", "upcast": True, "liger": True, "activation_offloading": True,
        "alloc_conf": "expandable_segments:True", "packing": True, "padding": True, "eval_batch_size": 7,
        "prompt_len": 7, "completion_len": 7, "max_length": 7, "loss_type": "ipo", "beta": 0.5,
        "precompute_ref_log_probs": True, "num_generations": 7, "num_iterations": 7, "steps_per_generation": 7,
        "scale_rewards": "batch",
        "vllm": "colocate", "vllm_gpu_memory_utilization": 0.5, "vllm_enable_sleep_mode": True,
        "parallel": "ddp", "quant_storage": "float16",
        "reshard_after_forward": False, "load_on": "cpu", "ddp_backend": "gloo",
        "task": "classification", "num_labels": 7, "image_size": "7x7", "images": 7, "image_tokens": 7,
        "exclude_modules": "q_proj", "stack": {"trl": "1.0"},
    }  # fmt: skip
    assert changed.keys() == set(RUN_FIELDS)
    key = options_without("batch_size", "rank")
    for name, value in changed.items():
        same = key(RunConfig().with_(**{name: value})) == key(RunConfig())
        assert same == (name in ("batch_size", "rank")), name
    assert key(RunConfig(stack={"a": "1", "b": "2"})) == key(RunConfig(stack={"b": "2", "a": "1"}))
    assert {key(RunConfig()): 1}[key(RunConfig(rank=3))] == 1
