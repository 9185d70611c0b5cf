"""Every run option reaches the library argument that it is about."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_planner.errors import InputError
from qlora_planner.spec.run import RUN_FIELDS, RunConfig
from qlora_planner.train import data, options

torch = pytest.importorskip("torch")
RUN = RunConfig(
    quant="nf4", compute_dtype="bfloat16", alpha=48, target_modules="q_proj, v_proj", lora_dropout=0.1,
    attention="sdpa", trainer="trl-sft", upcast=False, padding=False,
)  # fmt: skip


def told(run: RunConfig) -> dict[str, Any]:
    """All that the libraries are told about a run, flat."""
    quantization = {} if run.quant == "none" else options.quantization_config(run).to_dict()
    loading = {key: str(value) for key, value in options.loading_options(run).items() if key != "quantization_config"}
    return {
        **{f"quantization.{key}": value for key, value in quantization.items()},
        **{f"loading.{key}": value for key, value in loading.items()},
        **{f"lora.{key}": value for key, value in options.lora_options(run).items()},
        **{
            f"training.{key}": value
            for key, value in options.training_options(run, steps=3, folder="x", device="cuda").items()
        },
        **{f"sft.{key}": value for key, value in options.sft_options(run).items()},
        **{f"environment.{key}": value for key, value in options.environment(run).items()},
        "rows": data.row_lengths(run, 4),
    }


CHANGES: dict[str, tuple[Any, set[str]]] = {
    "quant": ("fp4", {"quantization.bnb_4bit_quant_type"}),
    "double_quant": (False, {"quantization.bnb_4bit_use_double_quant"}),
    "compute_dtype": (
        "float16",
        {"quantization.bnb_4bit_compute_dtype", "training.bf16", "training.fp16"},
    ),
    "load_dtype": ("float16", {"loading.dtype"}),
    "seq_len": (512, {"sft.max_length", "rows"}),
    "batch_size": (2, {"training.per_device_train_batch_size"}),
    "grad_accum": (4, {"training.gradient_accumulation_steps"}),
    "rank": (64, {"lora.r"}),
    "alpha": (8, {"lora.lora_alpha"}),
    "target_modules": ("all-linear", {"lora.target_modules"}),
    "lora_dropout": (0.0, {"lora.lora_dropout"}),
    "dora": (True, {"lora.use_dora"}),
    "rslora": (True, {"lora.use_rslora"}),
    "modules_to_save": ("lm_head", {"lora.modules_to_save"}),
    "gradient_checkpointing": (
        False,
        {"training.gradient_checkpointing", "training.gradient_checkpointing_kwargs"},
    ),
    "use_reentrant": (True, {"training.gradient_checkpointing_kwargs"}),
    "attention": ("eager", {"loading.attn_implementation"}),
    "optimizer": ("adamw_torch", {"training.optim"}),
    "liger": (True, {"training.use_liger_kernel"}),
    "loss_kernel": ("liger-fused", {"training.use_liger_kernel", "training.liger_kernel_config"}),
    "checkpoint_every": (2, {"training.gradient_checkpointing_kwargs"}),
    "checkpoint_offload": (True, {"training.gradient_checkpointing_kwargs"}),
    "activation_offloading": (True, {"sft.activation_offloading"}),
    "alloc_conf": (
        "expandable_segments:True",
        {"environment.PYTORCH_ALLOC_CONF", "environment.PYTORCH_CUDA_ALLOC_CONF"},
    ),
    "packing": (True, {"sft.packing", "sft.dataset_kwargs", "rows"}),
    "eval_batch_size": (3, {"training.per_device_eval_batch_size"}),
    "task": ("classification", {"lora.task_type"}),
    "exclude_modules": ("visual", {"lora.exclude_modules"}),
}
# `method`, `trainer` and `upcast` choose what is called; `padding` needs a batch; `stack` is about other versions;
# `num_labels` decides the model's class, and images what is in its batches.
ELSEWHERE = {"method", "trainer", "upcast", "padding", "stack", "num_labels", "image_size", "images", "image_tokens"}
ELSEWHERE |= {"expert_quant"}  # such a run is not executed
# Options of trainers and machines of their own: tests/launch and tests/exchange hold what is built from them.
ELSEWHERE |= {"prompt_len", "completion_len", "max_length", "loss_type", "beta", "precompute_ref_log_probs"}
ELSEWHERE |= {"num_generations", "num_iterations", "steps_per_generation", "scale_rewards"}
ELSEWHERE |= {"vllm", "vllm_gpu_memory_utilization", "vllm_enable_sleep_mode"}
ELSEWHERE |= {"parallel", "quant_storage", "reshard_after_forward", "load_on", "ddp_backend"}


def test_every_option_is_looked_at() -> None:
    assert set(CHANGES) | ELSEWHERE == set(RUN_FIELDS)


@pytest.mark.parametrize("option", CHANGES)
def test_an_option_changes_what_it_is_about_and_nothing_else(option: str) -> None:
    value, expected = CHANGES[option]
    before, after = told(RUN), told(RUN.with_(**{option: value}))
    changed = {key for key in before.keys() | after.keys() if before.get(key, ...) != after.get(key, ...)}
    assert changed == expected


def test_int8_is_the_other_loader() -> None:
    config = options.quantization_config(RUN.with_(quant="int8"))
    assert config.load_in_8bit and not config.load_in_4bit


def test_a_16_bit_base_is_not_quantised() -> None:
    assert "quantization_config" not in options.loading_options(RUN.with_(method="lora", quant="none"))


def test_attention_is_the_modules_that_the_model_has() -> None:
    run = RUN.with_(target_modules="attention")
    assert options.lora_options(run, ["layers.0.q"])["target_modules"] == ["layers.0.q"]
    with pytest.raises(InputError, match="--target-modules attention"):
        options.lora_options(run, [])


def test_each_padded_batch_has_one_short_row() -> None:
    lengths = data.row_lengths(RUN.with_(padding=True, batch_size=4, seq_len=100), 8)
    assert lengths == [100, 100, 100, 50, 100, 100, 100, 50]


def test_a_batch_is_padded_to_its_longest_row() -> None:
    batch = data.collate([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, -100, -100]]


def test_rows_stay_in_the_vocabulary_and_off_special_ids() -> None:
    ids = [token for row in data.token_rows(RUN.with_(seq_len=300), 2, 50) for token in row]
    assert (min(ids), max(ids)) == (3, 49)


def test_liger_leaves_the_forward_of_a_classifier_alone() -> None:
    told = options.trainer_options(RUN.with_(task="classification", liger=True))
    assert told["use_liger_kernel"] and told["liger_kernel_config"] == {"fused_linear_cross_entropy": False}
