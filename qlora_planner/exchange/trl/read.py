"""Configs of TRL's own command line read as a run. See `trl_keys` for every key and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.catalog.attention import nearest_kernel
from qlora_planner.catalog.trainers import trainer_of_format
from qlora_planner.exchange.effects import either, more
from qlora_planner.exchange.parsed_config import NOTHING, Config, Reading
from qlora_planner.exchange.several_cards.tools import of_transformers
from qlora_planner.exchange.trl import keys as trl_keys
from qlora_planner.exchange.trl.keys import FAMILIES, NEUTRAL, NOT_MODELLED, USED

FORMAT = "trl"
_HALVES = ("bfloat16", "float16")
_SFT_LOSSES = ("nll", "chunked_nll")
_ATTENTIONS = {name: name for name in ("eager", "sdpa", "flash_attention_2")}
_ATTENTIONS["kernels-community/flash-attn2"] = "flash_attention_2"
# transformers 5.17, TrainingArguments.
_BATCH_SIZE = 8

is_trl = trl_keys.is_trl


def read(raw: Mapping[str, Any], location: str, _stack: Mapping[str, str] = NOTHING) -> Reading:
    """A parsed config of `trl sft --config`, with trl's and transformers' own defaults.

    Raises InputError naming `location` and every fault: no model, values of the wrong kind, options that exclude each
    other, an optimizer whose memory is not known.
    """
    config = Config(raw, location)
    model_id = config.model("model_name_or_path")
    config.notes.append("a config of TRL's own command line, read as `trl sft --config`")
    options: dict[str, Any] = {"trainer": trainer_of_format(FORMAT).name, "upcast": False}
    options |= _method(config)
    options |= _adapters(config) if options["method"] != "full" else {}
    options |= _dtypes(config, options["method"])
    old = config.integer("max_seq_length", None)
    options |= {
        "seq_len": config.integer("max_length", old or 1024),
        "batch_size": config.integer("per_device_train_batch_size", _BATCH_SIZE),
        "grad_accum": config.integer("gradient_accumulation_steps", 1),
        "packing": config.flag("packing"),
        "optimizer": config.optimizer("optim", "adamw_torch_fused"),
        "liger": config.flag("use_liger_kernel"),
        "activation_offloading": config.flag("activation_offloading"),
    }
    options |= _checkpointing(config)
    options |= _attention(config)
    strategy = config.text("eval_strategy", "no", ("no", "steps", "epoch"))
    size = config.integer("per_device_eval_batch_size", _BATCH_SIZE)
    options |= {"eval_batch_size": size} if strategy != "no" else {}
    loss = config.text("loss_type", "nll")
    if loss not in _SFT_LOSSES:
        config.leave("loss_type", either("another loss than a language model's own"))
    of_transformers(config, options, "trl", stored(config, options))
    return config.finish(
        FORMAT, model_id, options, used=USED, neutral=NEUTRAL, families=FAMILIES, not_modelled=NOT_MODELLED
    )


def stored(config: Config, options: Mapping[str, Any]) -> tuple[str, str] | None:
    """The dtype that 4-bit weights are stored in (trl/trainer/utils.py), and what decides it."""
    named = config.text("bnb_4bit_quant_storage")
    if options.get("quant") not in ("nf4", "fp4"):
        return None
    if named is None:
        return "uint8", "TRL without bnb_4bit_quant_storage"
    return named.removeprefix("torch."), "bnb_4bit_quant_storage"


def _method(config: Config) -> dict[str, Any]:
    """What is trained, and how the base is stored."""
    four, eight = config.flag("load_in_4bit"), config.flag("load_in_8bit")
    stored = config.text("bnb_4bit_quant_type", "nf4", ("nf4", "fp4"))
    double = config.flag("use_bnb_nested_quant")
    adapters = config.flag("use_peft")
    if four and eight:
        config.faults.append("load_in_4bit and load_in_8bit are both on: a weight is stored one way, so switch one off")
    if (four or eight) and not adapters:
        on = "load_in_4bit" if four else "load_in_8bit"
        config.faults.append(f"{on} without use_peft: quantised weights are not trained; add use_peft: true")
    if not adapters:
        return {"method": "full", "quant": "none"}
    if four:
        return {"method": "qlora", "quant": stored, "double_quant": double}
    return {"method": "qlora", "quant": "int8"} if eight else {"method": "lora", "quant": "none"}


def _adapters(config: Config) -> dict[str, Any]:
    targets, saved = config.names("lora_target_modules"), config.names("lora_modules_to_save")
    if not targets:
        config.notes.append(
            "no lora_target_modules: PEFT takes its own for the model's family, mostly q_proj and v_proj; taken as all"
            " of attention"
        )
    return {
        "rank": config.integer("lora_r", 16),
        "alpha": config.integer("lora_alpha", 32),
        "lora_dropout": config.number("lora_dropout", 0.05),
        "target_modules": ",".join(targets) or "attention",
        "modules_to_save": ",".join(saved) or None,
        "dora": config.flag("use_dora"),
        "rslora": config.flag("use_rslora"),
    }


def _dtypes(config: Config, method: str) -> dict[str, Any]:
    """SFTConfig trains in bfloat16 unless fp16 says otherwise; the weights are loaded in float32 unless dtype does."""
    old, new = config.text("torch_dtype"), config.text("dtype")
    loaded = (new or old or "float32").removeprefix("torch.")
    fp16 = config.flag("fp16")
    bf16 = config.flag("bf16", not fp16)
    if bf16 and fp16:
        config.faults.append("bf16 and fp16 are both on: switch one off")
    dtypes = {"compute_dtype": "float16" if fp16 else "bfloat16" if bf16 else "float32"}
    if loaded == "auto":
        return {**dtypes, "load_dtype": "bfloat16"}
    if loaded not in _HALVES:
        # A quantised base leaves its embedding, norms and head so, and what flows between layers with them.
        most = 0.5 if method == "qlora" else None
        effect = more("what is not quantised is loaded in float32; taken as bfloat16", most)
        given = next((key for key in ("dtype", "torch_dtype") if config.raw.get(key) is not None), None)
        if given is None:
            config.beside("dtype (TRL's own default: float32)", effect)
        else:
            config.leave(given, effect)
        return {**dtypes, "load_dtype": "bfloat16"}
    return {**dtypes, "load_dtype": loaded}


def _checkpointing(config: Config) -> dict[str, Any]:
    on = config.flag("gradient_checkpointing", True)
    options = {"gradient_checkpointing": on, "use_reentrant": config.reentrant(False) and on}
    return options | (config.checkpointed() if on else {})


def _attention(config: Config) -> dict[str, Any]:
    kernel = config.text("attn_implementation")
    if kernel is None:
        return {}
    if nearest_kernel(kernel) is not None:
        return {"attention": _ATTENTIONS.get(kernel, kernel)}
    if kernel not in _ATTENTIONS:
        config.leave("attn_implementation", either("taken as flash_attention_2"))
    return {"attention": _ATTENTIONS.get(kernel, "flash_attention_2")}


KEYS = {
    "seq_len": "max_length",
    "batch_size": "per_device_train_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "eval_batch_size": "per_device_eval_batch_size",
    "rank": "lora_r",
    "optimizer": "optim",
    "double_quant": "use_bnb_nested_quant",
    "gradient_checkpointing": "gradient_checkpointing",
    "attention": "attn_implementation",
}


def keys_besides(changes: Mapping[str, Any]) -> dict[str, Any]:
    """What changes become that are more than a key for an option."""
    return {"use_peft": True, "load_in_4bit": True, "load_in_8bit": False} if changes.get("quant") == "nf4" else {}
