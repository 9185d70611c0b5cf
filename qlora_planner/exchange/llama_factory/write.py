"""A run as a LLaMA-Factory config. See `llama_factory_keys` for what its keys mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_planner.catalog.trainers import trainer_named, trainer_of_format
from qlora_planner.errors import InputError
from qlora_planner.exchange.commented_yaml import differences, document, rows_full, target_names, training_arguments
from qlora_planner.exchange.llama_factory.keys import STAGES
from qlora_planner.exchange.llama_factory.read import ATTENTIONS, FORMAT
from qlora_planner.exchange.several_cards.fsdp import fsdp_keys
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.options import compute_dtype

_ABOVE = {
    "dataset": "A name in dataset_dir/dataset_info.json, and the template of the model's own chat format.",
    "image_max_pixels": "The area alone has a key: a square of it is counted, which may be some tokens off the plan.",
    "cutoff_len": "Tokens of a row, and what of a batch: these decide the memory.",
}
_KERNELS = {kernel: name for name, kernel in ATTENTIONS.items()}


def render(run: RunConfig, model_id: str, data: str, heading: list[str], attention_modules: Sequence[str]) -> str:
    """A resolved run as a LLaMA-Factory config, with what LLaMA-Factory does otherwise said above it.

    Raises InputError for targets that cannot be written down without their names.
    """
    half = compute_dtype(run)
    config: dict[str, Any] = {
        "model_name_or_path": model_id,
        **_task(run),
        "do_train": True,
        "finetuning_type": "full" if run.method == "full" else "lora",
    }
    if run.quant in ("nf4", "fp4"):
        config |= {"quantization_bit": 4, "quantization_type": run.quant, "double_quantization": run.double_quant}
    elif run.quant == "int8":
        config["quantization_bit"] = 8
    if run.method != "full":
        config |= _adapters_of(run, attention_modules)
    config |= {"dataset": "my_dataset", "dataset_dir": "data", "template": "default", "cutoff_len": run.seq_len}
    if rows_full(run):
        config["packing"] = True
    config |= _images(run)
    config |= {
        **training_arguments(run, half),
        "disable_gradient_checkpointing": not run.gradient_checkpointing,
        "use_reentrant_gc": run.use_reentrant,
        "flash_attn": _KERNELS.get(run.attention or "", "auto"),
        "enable_liger_kernel": run.liger,
    }
    if run.checkpoint_offload:
        config["use_unsloth_gc"] = True
    if run.method == "full":
        config["pure_bf16"] = half == "bfloat16"
    if run.eval_batch_size:
        config |= {"val_size": 0.02, "eval_strategy": "epoch", "per_device_eval_batch_size": run.eval_batch_size}
    if fsdp := fsdp_keys(run, "version"):
        config |= {"fsdp": True, **fsdp}
    config |= {"output_dir": "outputs", "logging_steps": 10, "report_to": "none"}
    return document(config, [*heading, *_differences(run, data)], _ABOVE)


def _task(run: RunConfig) -> dict[str, Any]:
    """`stage` and what belongs to it. Raises InputError for a trainer that has none there."""
    row = trainer_named(run.trainer)
    if row.automatic or FORMAT in row.formats:
        return {"stage": "sft"}
    if FORMAT in row.switches:
        return {"stage": "sft", row.switches[FORMAT]: True}
    if FORMAT not in row.stages:
        raise InputError(f"{row.name} is not written as a LLaMA-Factory config; --export trl is the script of this run")
    stage = row.stages[FORMAT]
    config: dict[str, Any] = {"stage": stage} if stage in STAGES else {"stage": "dpo", "pref_loss": stage}
    if run.beta is not None:
        config["pref_beta"] = run.beta
    if config["stage"] == "dpo" and run.loss_type is not None:
        config["pref_loss"] = run.loss_type
    return config


def _images(run: RunConfig) -> dict[str, Any]:
    """The area of every image, and adapters in the tower too, which LLaMA-Factory leaves out unless it is told."""
    if run.image_pixels is None:
        return {}
    width, height = run.image_pixels
    return {"image_max_pixels": width * height, "freeze_vision_tower": False, "freeze_multi_modal_projector": False}


def _adapters_of(run: RunConfig, attention_modules: Sequence[str]) -> dict[str, Any]:
    targets = run.target_modules or "all-linear"
    names = ["all"] if targets == "all-linear" else target_names(targets, attention_modules)
    keys: dict[str, Any] = {
        "lora_rank": run.rank,
        "lora_alpha": run.alpha,
        "lora_dropout": run.lora_dropout or 0.0,
        "lora_target": ",".join(names),
    }
    if run.modules_to_save:
        keys["additional_target"] = run.modules_to_save
    if run.dora:
        keys["use_dora"] = True
    if run.rslora:
        keys["use_rslora"] = True
    return keys


def _differences(run: RunConfig, data: str) -> list[str]:
    lines = differences("LLaMA-Factory", "Seq2SeqTrainer", trainer_of_format(FORMAT).name, run, _DROPPED)
    lines.append(f"Register {data} in dataset_info.json as my_dataset, and set the template of the model.")
    if run.images:
        lines.append("There `columns` names the column `images`, and the text of a row says <image> where each stands.")
    if run.alloc_conf is not None:
        lines.append(f"Set PYTORCH_ALLOC_CONF={run.alloc_conf} in the environment: this file has no place for it.")
    return lines


_DROPPED = {
    "checkpoint_every": "The plan checkpoints some layers; LLaMA-Factory checkpoints all.",
    "exclude_modules": "The plan leaves modules without adapters; LLaMA-Factory has no such option, so they get them.",
    "expert_quant": "The plan stores experts in 4 bits; LLaMA-Factory has no such option.",
    "loss_kernel": "The plan names what computes the loss; LLaMA-Factory has Liger's kernels together or none.",
    "activation_offloading": "The plan offloads activations; LLaMA-Factory has no such option.",
    "upcast": "The plan upcasts; LLaMA-Factory casts what is trained alone to float32.",
}
KEYS = {
    "seq_len": "cutoff_len",
    "batch_size": "per_device_train_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "eval_batch_size": "per_device_eval_batch_size",
    "rank": "lora_rank",
    "optimizer": "optim",
    "double_quant": "double_quantization",
}


def keys_besides(changes: Mapping[str, Any]) -> dict[str, Any]:
    """What changes become that are more than a key for an option."""
    keys: dict[str, Any] = {}
    if changes.get("quant") == "nf4":
        keys["quantization_bit"] = 4
    if changes.get("gradient_checkpointing"):
        keys["disable_gradient_checkpointing"] = False
    if "attention" in changes:
        keys["flash_attn"] = _KERNELS[changes["attention"]]
    return keys
