"""A run as an axolotl config. See `axolotl_keys` for what its keys mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_planner.catalog.trainers import trainer_named, trainer_of_format
from qlora_planner.errors import InputError
from qlora_planner.exchange.axolotl.read import ALLOC_CONF, FORMAT, FUSED_LOSS, KERNELS, LIGER_PARTS
from qlora_planner.exchange.commented_yaml import differences, document, rows_full, target_names
from qlora_planner.exchange.several_cards.fsdp import fsdp_keys
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.options import checkpointed_layers, compute_dtype
from qlora_planner.train.settings import LEARNING_RATE

CUT = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
LIGER = "axolotl.integrations.liger.LigerPlugin"


def render(run: RunConfig, model_id: str, data: str, heading: list[str], attention_modules: Sequence[str]) -> str:
    """A resolved run as an axolotl config, with what axolotl does otherwise said above it.

    Raises InputError for targets that cannot be written down without their names.
    """
    half = compute_dtype(run)
    config: dict[str, Any] = {"base_model": model_id}
    if run.method != "full":
        config["adapter"] = "qlora" if run.quant in ("nf4", "fp4") else "lora"
        config |= {"load_in_4bit": run.quant in ("nf4", "fp4"), "load_in_8bit": run.quant == "int8"}
    changed: dict[str, Any] = {}
    if run.quant == "fp4":
        changed["bnb_4bit_quant_type"] = "fp4"
    if run.quant in ("nf4", "fp4") and not run.double_quant:
        changed["bnb_4bit_use_double_quant"] = False
    if run.expert_quant == "nf4":
        config["quantize_moe_experts"] = True
    if run.quant_storage is not None:
        changed["bnb_4bit_quant_storage"] = run.quant_storage
    if changed:
        config["bnb_config_kwargs"] = changed
    config |= _task(run)
    config["datasets"] = [{"path": data, "ds_type": "json", "type": _ROWS.get(config.get("rl", ""), "chat_template")}]
    config |= {"val_set_size": 0.02 if run.eval_batch_size else 0.0, "output_dir": "./outputs"}
    if run.eval_batch_size:
        config |= {"evals_per_epoch": 1, "eval_batch_size": run.eval_batch_size}
    config |= {"sequence_len": run.seq_len, "sample_packing": rows_full(run), **_images(run)}
    if run.method != "full":
        config |= _adapters_of(run, attention_modules)
    config |= {
        "micro_batch_size": run.batch_size,
        "gradient_accumulation_steps": run.grad_accum,
        "num_epochs": 1,
        "optimizer": run.optimizer,
        "lr_scheduler": "cosine",
        "learning_rate": LEARNING_RATE,
        "bf16": half == "bfloat16",
        "fp16": half == "float16",
        "tf32": False,
        "gradient_checkpointing": run.gradient_checkpointing,
    }
    if run.gradient_checkpointing:
        config["gradient_checkpointing_kwargs"] = {
            "use_reentrant": run.use_reentrant, **checkpointed_layers(run)
        }  # fmt: skip
    config |= fsdp_keys(run, "fsdp_version")
    if run.attention is not None:
        config["attn_implementation"] = run.attention
    if run.loss_kernel == "cut-cross-entropy":
        config["plugins"] = [CUT]
    elif run.loss_kernel == "liger-fused" and not run.liger:
        config |= {"plugins": [LIGER], FUSED_LOSS: True}
    elif run.liger:
        config |= {"plugins": [LIGER], **dict.fromkeys(LIGER_PARTS, True)}
    return document(config, [*heading, *_differences(run)], _ABOVE)


_ABOVE = {
    "datasets": "JSON lines with messages; type: completion for plain text.",
    "sequence_len": "Tokens of a row, and what of a batch: these decide the memory.",
    "image_size": "Width and height of every image in pixels; axolotl resizes each to this.",
    "lora_mlp_kernel": "axolotl would switch these on by itself; the plan counts PEFT's own code.",
}


# The columns of a preference row, as its user-defined types name them.
_ROWS: Mapping[str, Any] = {
    "orpo": "chat_template.argilla",  # chosen and rejected are chats: it has no user-defined type
} | {
    stage: {
        **{f"field_{name}": name for name in columns},
        **{f"{name}_format": f"{{{name}}}" for name in columns if name != "label"},
    }
    for stage, columns in {
        "dpo": ("prompt", "chosen", "rejected"), "kto": ("prompt", "completion", "label"),
    }.items()
}  # fmt: skip


def _task(run: RunConfig) -> dict[str, Any]:
    """`rl` and what belongs to it. Raises InputError for a trainer that axolotl does not call by a name known here."""
    row = trainer_named(run.trainer)
    if row.automatic or FORMAT in row.formats:
        return {}
    if FORMAT not in row.stages:
        raise InputError(f"{row.name} is not written as an axolotl config; --export trl is the script of this run")
    config: dict[str, Any] = {"rl": row.stages[FORMAT]}
    if run.beta is not None:
        config["rl_beta"] = run.beta
    if config["rl"] == "dpo" and run.loss_type is not None:
        config["dpo_loss_type"] = run.loss_type.split(",")
    return config | ({"precompute_ref_log_probs": True} if run.precompute_ref_log_probs else {})


def _images(run: RunConfig) -> dict[str, Any]:
    """What has rows read with the model's processor, and every image resized."""
    if run.image_pixels is None:
        return {}
    return {
        "processor_type": "AutoProcessor", "skip_prepare_dataset": True, "remove_unused_columns": False,
        "image_size": list(run.image_pixels), "image_resize_algorithm": "bilinear",
    }  # fmt: skip


def _adapters_of(run: RunConfig, attention_modules: Sequence[str]) -> dict[str, Any]:
    keys: dict[str, Any] = {"lora_r": run.rank, "lora_alpha": run.alpha, "lora_dropout": run.lora_dropout or 0.0}
    targets = run.target_modules or "all-linear"
    if targets == "all-linear":
        keys["lora_target_linear"] = True
    else:
        keys["lora_target_modules"] = target_names(targets, attention_modules)
    if run.modules_to_save:
        keys["lora_modules_to_save"] = [name.strip() for name in run.modules_to_save.split(",")]
    if run.dora:
        keys["peft_use_dora"] = True
    if run.rslora:
        keys["peft_use_rslora"] = True
    return keys | dict.fromkeys(KERNELS, False)


def _differences(run: RunConfig) -> list[str]:
    lines = differences(FORMAT, "Trainer", trainer_of_format(FORMAT).name, run, _DROPPED)
    if run.alloc_conf != ALLOC_CONF:
        lines.append(f"axolotl sets PYTORCH_ALLOC_CONF={ALLOC_CONF} unless it is set already.")
    return lines


_DROPPED = {
    "activation_offloading": "The plan offloads activations; axolotl's own offloading keeps others, so it is left out"
    " here.",
    "exclude_modules": "The plan leaves modules without adapters; axolotl has no such option, so they get them.",
    "upcast": "The plan upcasts; axolotl casts norms and embeddings back to 16 bits.",
}
KEYS = {
    "seq_len": "sequence_len",
    "batch_size": "micro_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "eval_batch_size": "eval_batch_size",
    "rank": "lora_r",
    "optimizer": "optimizer",
    "gradient_checkpointing": "gradient_checkpointing",
    "attention": "attn_implementation",
}


def keys_besides(changes: Mapping[str, Any]) -> dict[str, Any]:
    """What changes become that are more than a key for an option."""
    if changes.get("quant") == "nf4":
        return {"adapter": "qlora", "load_in_4bit": True, "load_in_8bit": False}
    keys: dict[str, Any] = {"quantize_moe_experts": True} if changes.get("expert_quant") == "nf4" else {}
    return keys | ({"bnb_config_kwargs": {"bnb_4bit_use_double_quant": True}} if changes.get("double_quant") else {})
