"""A run as a config of TRL's own command line (`trl sft --config FILE`). See `trl_keys` for what its keys mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_planner.catalog.parallel import DDP, FSDP1, FSDP2, PIPELINE, ZERO2, ZERO3
from qlora_planner.catalog.trainers import trainer_named, trainer_of_format
from qlora_planner.errors import InputError
from qlora_planner.exchange.commented_yaml import document, target_names, training_arguments
from qlora_planner.exchange.trl.read import FORMAT
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.options import checkpointed_layers, compute_dtype
from qlora_planner.train.settings import EVAL_SPLIT

# TRL's own words for an accelerate config (trl/accelerate_configs).
_LAUNCHES: Mapping[str, str] = {DDP: "multi_gpu", FSDP1: "fsdp1", FSDP2: "fsdp2", ZERO2: "zero2", ZERO3: "zero3"}
_ABOVE = {
    "datasets": "JSON lines with messages, or text.",
    "max_length": "Tokens of a row, and what of a batch: these decide the memory.",
}


def render(run: RunConfig, model_id: str, data: str, heading: list[str], attention_modules: Sequence[str]) -> str:
    """A resolved run as a config of `trl sft`, with what has no key there said above it.

    Raises InputError for another trainer than trl-sft, for what its command line has no key for, and for targets that
    cannot be written down without their names.
    """
    if FORMAT not in trainer_named(run.trainer).formats:
        own = trainer_of_format(FORMAT).name
        raise InputError(f"--export trl-config: `trl sft` is {own}, not {run.trainer}; --export trl is its script")
    if run.expert_quant == "nf4":
        raise InputError("--export trl-config: `trl sft` keeps experts in 16 bits; --export axolotl stores them in NF4")
    if run.parallel == PIPELINE or (run.parallel == FSDP2 and run.reshard_after_forward is False):
        raise InputError("--export trl-config: TRL has no word for how these cards share; --export trl is the script")
    half = compute_dtype(run)
    config: dict[str, Any] = {
        "model_name_or_path": model_id,
        "dtype": run.load_dtype or "bfloat16",
        "datasets": [{"path": "json", "data_files": data}],
        "output_dir": "outputs",
    }
    if run.attention is not None:
        config["attn_implementation"] = run.attention
    config |= _method(run, attention_modules)
    config |= {
        "max_length": run.seq_len,
        "packing": run.packing,
        **training_arguments(run, half),
        "gradient_checkpointing": run.gradient_checkpointing,
    }
    if run.gradient_checkpointing:
        config["gradient_checkpointing_kwargs"] = {"use_reentrant": run.use_reentrant, **checkpointed_layers(run)}
    config |= {"activation_offloading": run.activation_offloading, "use_liger_kernel": run.liger}
    if run.eval_batch_size:
        config |= {
            "test_split_size": EVAL_SPLIT,
            "eval_strategy": "epoch",
            "per_device_eval_batch_size": run.eval_batch_size,
        }
    if run.parallel is not None:
        config["accelerate_config"] = _LAUNCHES[run.parallel]
    config |= {"logging_steps": 10, "report_to": "none"}
    return document(config, [*heading, *_notes(run)], _ABOVE)


def _method(run: RunConfig, attention_modules: Sequence[str]) -> dict[str, Any]:
    if run.method == "full":
        return {}
    keys: dict[str, Any] = {"use_peft": True}
    if run.quant in ("nf4", "fp4"):
        keys |= {"load_in_4bit": True, "bnb_4bit_quant_type": run.quant, "use_bnb_nested_quant": run.double_quant}
        if run.quant_storage is not None:
            keys["bnb_4bit_quant_storage"] = run.quant_storage
    elif run.quant == "int8":
        keys["load_in_8bit"] = True
    targets = run.target_modules or "all-linear"
    keys |= {
        "lora_r": run.rank,
        "lora_alpha": run.alpha or 2 * run.rank,
        "lora_dropout": 0.0 if run.lora_dropout is None else run.lora_dropout,
        "lora_target_modules": targets if targets == "all-linear" else target_names(targets, attention_modules),
    }
    if run.modules_to_save:
        keys["lora_modules_to_save"] = [name.strip() for name in run.modules_to_save.split(",")]
    if run.dora:
        keys["use_dora"] = True
    if run.rslora:
        keys["use_rslora"] = True
    return keys


def _notes(run: RunConfig) -> list[str]:
    lines = ["trl sft --config FILE. `qlora-plan check` estimates this very file."]
    if run.parallel is not None:
        lines.append("Give `trl sft` the number of cards as --num_processes.")
    if run.alloc_conf is not None:
        lines.append(f"Set PYTORCH_ALLOC_CONF={run.alloc_conf} in the environment: this file has no place for it.")
    if run.upcast:
        lines.append("The plan upcasts; TRL casts nothing to float32 while it prepares.")
    return lines
