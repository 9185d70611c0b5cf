"""A resolved RunConfig in the words of transformers, peft and trl: every option, nothing that the run does not say."""

from __future__ import annotations

from typing import Any

from qlora_planner.catalog.classifiers import labels_of
from qlora_planner.catalog.parallel import DDP, FSDP1, FSDP2, ZERO2, ZERO3
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.errors import InputError
from qlora_planner.memory.weights.placement import load_dtype
from qlora_planner.memory.weights.targets import exclusion
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.losses import liger_parts
from qlora_planner.train.settings import LEARNING_RATE, Settings

CHECKPOINTS_KEPT = 2
COMPUTE_DTYPE, STORAGE_DTYPE = "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"
# torch reads the first name since 2.9 and the second before; either alone would be ignored by some supported release.
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def environment(run: RunConfig) -> dict[str, str | None]:
    """Variables that must be set (None: unset) before torch is imported: the allocator's settings, and no network."""
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**quiet, **allocator_environment(run)}


def allocator_environment(run: RunConfig) -> dict[str, str | None]:
    """The variables that carry the allocator's settings (None: unset)."""
    return dict.fromkeys(ALLOCATOR_VARIABLES, run.alloc_conf)


def torch_dtype(name: str) -> Any:
    """torch's dtype of `bfloat16`, `float16` or `float32`."""
    import torch

    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[name]


def compute_dtype(run: RunConfig) -> str:
    """The name of the dtype that the run computes in."""
    return run.compute_dtype or "bfloat16"


def loading_options(run: RunConfig) -> dict[str, Any]:
    """What `from_pretrained` is told about dtypes, attention and quantisation."""
    named = model_options(run)
    options: dict[str, Any] = {**named, "dtype": torch_dtype(named["dtype"])}
    if quantization_options(run):
        options["quantization_config"] = quantization_config(run)
    return options


def model_options(run: RunConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained` but for quantisation, with dtypes by name: no torch is needed."""
    options: dict[str, Any] = {"dtype": load_dtype(run)}
    if run.attention is not None:
        options["attn_implementation"] = run.attention
    return options


def quantization_config(run: RunConfig) -> Any:
    """transformers' BitsAndBytesConfig of a quantised run."""
    from transformers import BitsAndBytesConfig

    options = quantization_options(run)
    for name in (COMPUTE_DTYPE, STORAGE_DTYPE):
        if name in options:
            options[name] = torch_dtype(options[name])
    return BitsAndBytesConfig(**options)


def quantization_options(run: RunConfig) -> dict[str, Any]:
    """Arguments of BitsAndBytesConfig, with dtypes by name; none for a run that is not quantised."""
    if run.quant in (None, "none"):
        return {}
    if run.quant == "int8":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": run.quant,
        "bnb_4bit_use_double_quant": run.double_quant,
        COMPUTE_DTYPE: compute_dtype(run),
        **({} if run.quant_storage in (None, "uint8") else {STORAGE_DTYPE: run.quant_storage}),
    }


def checkpointing_options(run: RunConfig) -> dict[str, Any]:
    """Arguments of torch's checkpoint function."""
    return {"use_reentrant": run.use_reentrant}


def checkpointed_layers(run: RunConfig) -> dict[str, Any]:
    """Arguments of `gradient_checkpointing_enable` beside torch's (transformers 5.17 modeling_utils.py): which layers
    are checkpointed, and whether their inputs wait in the host's memory. Nothing that the run does not ask for."""
    options: dict[str, Any] = {}
    if run.checkpoint_every is not None:
        options["every_n_layers"] = run.checkpoint_every
    if run.checkpoint_offload:
        options["offload"] = True
    return options


def lora_options(run: RunConfig, attention_modules: list[str] | None = None) -> dict[str, Any]:
    """Arguments of peft's LoraConfig.

    `attention_modules` are the names that the target `attention` stands for in this model. Raises InputError when it
    is needed and empty.
    """
    if run.target_modules == "attention" and not attention_modules:
        raise InputError("--target-modules attention: this model has no linear modules in its attention")
    options: dict[str, Any] = {
        "r": run.rank,
        "lora_alpha": run.alpha if run.alpha is not None else 2 * run.rank,
        "target_modules": _targets(run.target_modules or "all-linear", attention_modules or []),
        "lora_dropout": run.lora_dropout or 0.0,
        "use_dora": run.dora,
        "use_rslora": run.rslora,
        "task_type": peft_task(run),
    }
    if run.exclude_modules:
        options["exclude_modules"] = exclusion(run.exclude_modules)
    if run.modules_to_save:
        options["modules_to_save"] = _names(run.modules_to_save)
    return options


def peft_task(run: RunConfig) -> str:
    """PEFT's name for what is trained: with SEQ_CLS it trains the `score` head whole, beside the adapters."""
    return "CAUSAL_LM" if labels_of(run) is None else "SEQ_CLS"


def _targets(targets: str, attention_modules: list[str]) -> str | list[str]:
    if targets == "all-linear":
        return targets
    return attention_modules if targets == "attention" else _names(targets)


def _names(joined: str) -> list[str]:
    return [name.strip() for name in joined.split(",") if name.strip()]


def training_options(run: RunConfig, *, steps: int, folder: str, device: str) -> dict[str, Any]:
    """Arguments that transformers' TrainingArguments and trl's SFTConfig share.

    `steps` optimizer steps, files only under `folder`. Rows are taken in order, so that every batch of a padded run
    holds its one short sequence.
    """
    return {
        "output_dir": folder,
        "max_steps": steps,
        **trainer_options(run),
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        **parallel_options(run, device),
    }


def launch_options(run: RunConfig, settings: Settings, *, folder: str, device: str) -> dict[str, Any]:
    """`training_options` of a run over a real dataset, by epochs or steps, with checkpoints under `folder`."""
    options: dict[str, Any] = {
        "output_dir": folder,
        "num_train_epochs": settings.epochs,
        "max_steps": -1 if settings.max_steps is None else settings.max_steps,
        **trainer_options(run),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.scheduler,
        "warmup_steps": settings.warmup,  # transformers takes a number below one as a part of all steps
        "seed": settings.seed,
        "data_seed": settings.seed,
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": CHECKPOINTS_KEPT,
        "logging_steps": settings.logging_steps,
        # A loss that is no number must be seen, not averaged away.
        "logging_nan_inf_filter": False,
        "report_to": list(settings.report_to) or "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        **parallel_options(run, device),
    }
    if run.images:  # what is beside the tokens is no argument of any forward
        options["remove_unused_columns"] = False
    if run.eval_batch_size is not None:
        options |= {"eval_strategy": "steps", "eval_steps": settings.save_steps}
    return options


def parallel_options(run: RunConfig, device: str) -> dict[str, Any]:
    """What a strategy for several cards calls for of TrainingArguments, beside accelerate's own config."""
    options: dict[str, Any] = {}
    if run.parallel == DDP:  # transformers looks for unused ones in every PEFT model, and walks the graph each step
        options["ddp_find_unused_parameters"] = False
    if run.ddp_backend is not None and device != "cpu":
        options["ddp_backend"] = run.ddp_backend
    if run.parallel in (FSDP1, FSDP2, ZERO2, ZERO3) and device == "cpu":
        options["accelerator_config"] = {"use_configured_state": True}  # not made anew: see train.ranks
    return options


def trainer_options(run: RunConfig) -> dict[str, Any]:
    """What the run itself decides of TrainingArguments and SFTConfig, wherever it is run."""
    half = compute_dtype(run)
    options: dict[str, Any] = {
        "per_device_train_batch_size": run.batch_size,
        "gradient_accumulation_steps": run.grad_accum,
        "learning_rate": LEARNING_RATE,
        "optim": run.optimizer,
        "bf16": half == "bfloat16",
        "fp16": half == "float16",
        "gradient_checkpointing": run.gradient_checkpointing,
        "use_liger_kernel": liger_parts(run) is not None,
    }
    if parts := liger_parts(run):
        options["liger_kernel_config"] = parts
    if run.gradient_checkpointing:
        options["gradient_checkpointing_kwargs"] = {**checkpointing_options(run), **checkpointed_layers(run)}
    if run.eval_batch_size is not None:
        options["per_device_eval_batch_size"] = run.eval_batch_size
    return options


def sft_options(run: RunConfig) -> dict[str, Any]:
    """What only trl's SFTConfig has, for rows that are tokenised already."""
    return {
        **sequence_options(run),
        # Rows are made in the shape that preparing would give them; packing alone must be done by trl itself.
        "dataset_kwargs": {"skip_prepare_dataset": not run.packing},
    }


def sequence_options(run: RunConfig) -> dict[str, Any]:
    """What the run itself decides of what only SFTConfig has."""
    return {
        "max_length": run.seq_len,
        "packing": run.packing,
        "activation_offloading": run.activation_offloading,
    }


def online_options(run: RunConfig) -> dict[str, Any]:
    """What the run decides of what only GRPOConfig and RLOOConfig have, as far as its trainer has it."""
    wanted: dict[str, Any] = {
        "max_completion_length": run.completion_len,
        "num_generations": run.num_generations,
        "num_iterations": run.num_iterations,
        "steps_per_generation": run.steps_per_generation,
        "beta": run.beta,
        "loss_type": run.loss_type,
        "scale_rewards": run.scale_rewards,
    }
    if run.vllm not in (None, "none"):
        wanted |= {
            "use_vllm": True,
            "vllm_mode": run.vllm,
            "vllm_gpu_memory_utilization": run.vllm_gpu_memory_utilization,
            "vllm_enable_sleep_mode": run.vllm_enable_sleep_mode,
        }
    return {name: value for name, value in wanted.items() if value is not None}


def preference_options(run: RunConfig) -> dict[str, Any]:
    """What the run decides of what only DPOConfig, KTOConfig and RewardConfig have, as far as its trainer has it.

    Sequences are cut where the run is planned to end, whatever the data holds.
    """
    wanted: dict[str, Any] = {
        "max_length": run.seq_len,
        "activation_offloading": run.activation_offloading,
        "loss_type": run.loss_type if run.loss_type is None or "," not in run.loss_type else run.loss_type.split(","),
        "beta": run.beta,
        "precompute_ref_log_probs": bool(run.precompute_ref_log_probs),
    }
    own = trainer_named(run.trainer).own_options
    return {name: value for name, value in wanted.items() if name in own and value is not None}
