"""The keys of TRL's own command line (`trl sft --config FILE`) by what they do to memory.

Source: trl 1.16, scripts/sft.py (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig), and transformers
5.17's TrainingArguments, whose defaults hold where SFTConfig has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.exchange.effects import SLIGHT, Effect, either, less, more, rows

# Key -> what it decides of a run.
USED: Mapping[str, str] = {
    "model_name_or_path": "the model",
    "dtype": "load_dtype; float32 where it is absent",
    "torch_dtype": "load_dtype (the old name of dtype)",
    "attn_implementation": "attention; transformers' choice where it is absent",
    "use_peft": "method: adapters, or every weight where it is absent",
    "lora_r": "rank; 16 where it is absent",
    "lora_alpha": "alpha; 32 where it is absent",
    "lora_dropout": "lora_dropout; 0.05 where it is absent",
    "lora_target_modules": "target_modules",
    "lora_modules_to_save": "modules_to_save",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "load_in_4bit": "quant: bnb_4bit_quant_type",
    "load_in_8bit": "quant: int8",
    "bnb_4bit_quant_type": "quant at 4 bits; nf4 where it is absent",
    "use_bnb_nested_quant": "double_quant; off where it is absent",
    "max_length": "seq_len; 1024 where it is absent",
    "max_seq_length": "seq_len (the old name of max_length)",
    "packing": "packing",
    "per_device_train_batch_size": "batch_size; 8 where it is absent",
    "gradient_accumulation_steps": "grad_accum",
    "gradient_checkpointing": "gradient_checkpointing; on where it is absent",
    "gradient_checkpointing_kwargs": "use_reentrant, checkpoint_every and checkpoint_offload",
    "activation_offloading": "activation_offloading",
    "optim": "optimizer; adamw_torch_fused where it is absent",
    "bf16": "compute_dtype; on where it and fp16 are absent",
    "fp16": "compute_dtype",
    "use_liger_kernel": "liger",
    "eval_strategy": "whether it evaluates",
    "per_device_eval_batch_size": "eval_batch_size; 8 where it is absent",
    "loss_type": "a language model's own loss (nll) or another",
    "bnb_4bit_quant_storage": "quant_storage, on several cards; uint8 where it is absent",
    "accelerate_config": "parallel, on several cards: one of trl's own names, or a file of accelerate's",
    "num_processes": "parallel: ddp, where nothing else shares the run",
    "deepspeed": "parallel: zero2 or zero3 by the stage in the file that it names",
    "fsdp": "parallel: fsdp2, or fsdp1 where fsdp_config says version 1",
    "fsdp_config": "how FSDP shares, offloads and loads",
}

_OTHER_VERB = "a key of TRL's preference and reward training, whose rows and losses are others"
_SEVERAL = "several cards share the work, which is not planned here"

# Key -> what it does that is not in the estimate. It counts only where it is switched on.
NOT_MODELLED: Mapping[str, Effect] = rows((
    ("beta num_generations max_completion_length max_prompt_length reward_funcs reward_model_name_or_path"
     " desirable_weight undesirable_weight precompute_ref_log_probs ref_model_init_kwargs use_vllm vllm_mode"
     " num_ppo_epochs teacher_model_name_or_path sft_model_path loss_weights num_iterations", either(_OTHER_VERB)),
    ("parallelism_config", either(_SEVERAL)),
    ("torch_compile", either("the compiler decides what is kept")),
    ("auto_find_batch_size", less("the batch is halved while it does not fit")),
    ("optim_target_modules", either("the optimizer projects gradients")),
    ("lora_target_parameters", more("more is adapted than is said")),
    ("model_init_kwargs", either("other arguments of loading the model")),
    ("padding_free", less("rows of a batch are joined without padding", 0.1)),
    ("eval_packing", either("evaluation in other rows", SLIGHT)),
    ("label_smoothing_factor", more("another loss over the logits")),
    ("liger_kernel_config", either("a part of Liger alone", 0.5)),
))  # fmt: skip

# Known, and they take no memory on the card.
_NEUTRAL = """
accelerator_config adam_beta1 adam_beta2 adam_epsilon assistant_only_loss average_tokens_across_devices
batch_eval_metrics bf16_full_eval chat_template_path columns completion_only_loss config data_files data_seed
dataset_config dataset_kwargs dataset_mixer dataset_name dataset_num_proc dataset_splits dataset_streaming
dataset_test_split dataset_text_field dataset_train_split datasets debug disable_tqdm do_eval do_predict do_train
enable_jit_checkpoint env eos_token fp16_full_eval full_determinism greater_is_better group_by_length
ignore_bias_buffers ignore_data_skip include_for_metrics include_num_input_tokens_seen include_tokens_per_second
label_names learning_rate length_column_name load_best_model_at_end local_rank log_level log_level_replica
log_on_each_node logging_dir logging_first_step logging_nan_inf_filter logging_steps logging_strategy lora_task_type
lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_steps metric_for_best_model model_revision neftune_noise_alpha
num_train_epochs optim_args output_dir overwrite_output_dir packing_strategy pad_to_multiple_of pad_token
prediction_loss_only preprocessing_num_workers project push_to_hub remove_unused_columns report_to
restore_callback_states_from_checkpoint resume_from_checkpoint router_aux_loss_coef run_name seed shuffle_dataset
skip_memory_metrics streaming test_split_size tf32 torch_compile_backend torch_compile_mode torch_empty_cache_steps
train_sampling_strategy truncation_mode trust_remote_code use_cache use_cpu wandb_project warmup_ratio warmup_steps
weight_decay
"""
NEUTRAL = frozenset(_NEUTRAL.split())
FAMILIES = ("eval_", "save_", "dataloader_", "ddp_", "hub_", "trackio_")

# What TRL alone calls so, and what LLaMA-Factory alone calls so: both name their model by `model_name_or_path`.
_TRL = (
    "dataset_name", "dataset_train_split", "dataset_test_split", "use_peft", "load_in_4bit", "load_in_8bit", "lora_r",
    "lora_target_modules", "lora_modules_to_save", "use_bnb_nested_quant", "bnb_4bit_quant_type", "attn_implementation",
    "dtype", "torch_dtype", "max_seq_length", "datasets", "dataset_text_field", "accelerate_config", "dataset_mixer",
    "gradient_checkpointing", "activation_offloading",
)  # fmt: skip
_LLAMA_FACTORY = (
    "stage", "finetuning_type", "template", "dataset", "dataset_dir", "cutoff_len", "quantization_bit", "lora_rank",
    "lora_target", "flash_attn", "double_quantization", "pure_bf16", "enable_liger_kernel", "additional_target",
    "disable_gradient_checkpointing", "quantization_method", "preprocessing_num_workers", "overwrite_cache",
)  # fmt: skip


def is_trl(raw: Mapping[str, Any]) -> bool:
    """Whether a parsed file that names its model `model_name_or_path` is TRL's: more of its keys are TRL's alone."""
    ours, theirs = sum(key in raw for key in _TRL), sum(key in raw for key in _LLAMA_FACTORY)
    return "model_name_or_path" in raw and "base_model" not in raw and ours > theirs
