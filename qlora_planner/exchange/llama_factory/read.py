"""LLaMA-Factory configs read as a run. See `llama_factory_keys` for every key and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from qlora_planner.catalog.trainers import TrainerRow, trainer_of_format, trainer_of_stage, trainer_of_switch
from qlora_planner.exchange.effects import SLIGHT, either, less, more
from qlora_planner.exchange.llama_factory.keys import FAMILIES, NEUTRAL, NOT_MODELLED, OWN_LOSS, STAGES, USED
from qlora_planner.exchange.parsed_config import NOTHING, Between, Config, Reading
from qlora_planner.exchange.several_cards.sharing import Beyond
from qlora_planner.exchange.several_cards.tools import of_transformers
from qlora_planner.exchange.trl import keys as trl_keys

FORMAT = "llama-factory"
STANDS_IN = (
    "LLaMA-Factory trains through transformers' Seq2SeqTrainer with what is trained in float32; modelled as hf-trainer"
)
ATTENTIONS = {"disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2", "fa3": "flash_attention_3"}
ADDED_TOKENS = ("resize_vocab", "add_tokens", "add_special_tokens", "new_special_tokens", "new_special_tokens_config")
_STAGES = ("sft", "pt", "rm", "ppo", "dpo", "kto")
# transformers 5.17, TrainingArguments.
_BATCH_SIZE = 8


def is_llama_factory(raw: Mapping[str, Any]) -> bool:
    """Whether a parsed file is a LLaMA-Factory config: TRL names its model by `model_name_or_path` too."""
    return "model_name_or_path" in raw and not trl_keys.is_trl(raw)


def read(raw: Mapping[str, Any], location: str, _stack: Mapping[str, str] = NOTHING) -> Reading:
    """A parsed LLaMA-Factory config, with its and transformers' own defaults.

    Raises InputError naming `location` and every fault: no model, values of the wrong kind, options that exclude each
    other, an optimizer whose memory is not known.
    """
    config = Config(raw, location)
    model_id = config.model("model_name_or_path")
    config.notes.append(STANDS_IN)
    options: dict[str, Any] = {"trainer": trainer_of_format(FORMAT).name, "upcast": False}
    stage = config.text("stage", "sft", _STAGES) or "sft"
    row = trainer_of_stage(FORMAT, config.text("pref_loss") or stage) if stage == "dpo" else None
    row = row or trainer_of_stage(FORMAT, stage)
    if stage not in ("sft", "pt"):
        prepares = row is not None and row.prepares_quantized
        config.leave("stage", OWN_LOSS if prepares else STAGES[stage])
    options |= _method(config)
    options |= _adapters(config) if options["method"] != "full" else {}
    options |= _dtypes(config, options["method"])
    options |= {
        "seq_len": config.integer("cutoff_len", 2048),
        "batch_size": config.integer("per_device_train_batch_size", _BATCH_SIZE),
        "grad_accum": config.integer("gradient_accumulation_steps", 1),
        "gradient_checkpointing": not config.flag("disable_gradient_checkpointing"),
        "optimizer": config.optimizer("optim", "adamw_torch_fused"),
        "liger": any([config.flag("enable_liger_kernel"), config.flag("use_liger_kernel")]),
    }
    reentrant = config.flag("use_reentrant_gc", True)
    options["use_reentrant"] = reentrant and options["gradient_checkpointing"]
    if config.flag("use_unsloth"):
        # model_utils/unsloth.py: its loader, its adapters, and its checkpointing whatever else is said of that.
        config.notes[:] = ["LLaMA-Factory hands the model to Unsloth (use_unsloth); modelled as --trainer unsloth"]
        own = trainer_of_switch(FORMAT, "use_unsloth").name
        options |= {"trainer": own, "gradient_checkpointing": True, "use_reentrant": False}
    if options["use_reentrant"]:
        config.stand_in("re-entrant checkpointing", either("modelled without re-entering", SLIGHT), use_reentrant=False)
    if config.flag("use_unsloth_gc") and options["gradient_checkpointing"] and not config.flag("use_unsloth"):
        # model_utils/checkpointing.py: every layer's input goes to the host, and comes back for its own backward.
        options |= {"checkpoint_offload": True, "use_reentrant": False}
        why = "layer inputs wait in host memory, and the card needs less than is said"
        config.stand_in("use_unsloth_gc: true", less(why), checkpoint_offload=False)
    options |= _attention(config)
    options |= _packing(config, stage, options)
    options |= _images(config)
    options |= _preference(config, row)
    _upcasts(config)
    options |= _evaluation(config)
    of_transformers(config, options, "LLaMA-Factory", stored(options))
    return config.finish(
        FORMAT, model_id, options, used=USED, neutral=NEUTRAL, families=FAMILIES, not_modelled=NOT_MODELLED
    )


def stored(options: Mapping[str, Any]) -> tuple[str, str] | None:
    """The dtype that 4-bit weights are stored in (model/model_utils/quantization.py), and what decides it."""
    if options.get("quant") not in ("nf4", "fp4"):
        return None
    return options.get("compute_dtype") or "bfloat16", "LLaMA-Factory, which stores 4-bit weights in the compute dtype"


def _preference(config: Config, row: TrainerRow | None) -> dict[str, Any]:
    """Its own trainers go through the same passes; what their losses hold beside is in STAGES."""
    beta, loss = config.number("pref_beta", 0.1), config.text("pref_loss")
    if row is None:
        return {}
    config.notes[:] = [f"LLaMA-Factory's own trainer; modelled as {row.name}"]
    options: dict[str, Any] = {
        "trainer": row.name,
        "padding": None,
        "upcast": None if row.prepares_quantized else False,
    }
    if "beta" in row.own_options:
        options["beta"] = beta
    if loss in row.loss_types:
        options["loss_type"] = loss
    elif loss not in (None, row.stages[FORMAT]) and row.loss_types:
        config.leave("pref_loss", either("another loss, which may need no reference"))
    return options


def _method(config: Config) -> dict[str, Any]:
    kind = config.text("finetuning_type", "lora", ("lora", "full", "freeze", "oft"))
    bits = config.integer("quantization_bit", None)
    family = config.text("quantization_method", "bnb")
    stored = config.text("quantization_type", "nf4", ("nf4", "fp4"))
    double = config.flag("double_quantization", True)
    if kind in ("freeze", "oft"):
        config.leave("finetuning_type", either("trains other weights; taken as lora"))
    if bits is not None and kind in ("full", "freeze"):
        config.faults.append(f"finetuning_type: {kind} with quantization_bit: quantised weights are not trained")
    if bits is None:
        return {"method": "full", "quant": "none"} if kind == "full" else {"method": "lora", "quant": "none"}
    if family != "bnb":
        config.leave("quantization_method", either("stores weights in its own way; taken as bitsandbytes"))
    if bits not in (4, 8):
        config.faults.append(f"quantization_bit must be 4 or 8, not {bits}")
    return {"method": "qlora", "quant": "int8" if bits == 8 else stored, "double_quant": double}


def _adapters(config: Config) -> dict[str, Any]:
    targets, saved = config.names("lora_target"), config.names("additional_target")
    # model_utils/embedding.py and loader/adapter.py: tokens that are added switch resize_vocab on, and that trains the
    # embedding and the head whole unless additional_target says what is trained.
    grown = [name for name in ADDED_TOKENS if config.get(name) not in (None, False, "", [])]
    if grown and not saved:
        config.trains_embeddings = True
        config.notes.append(f"{grown[0]}: LLaMA-Factory trains the embedding and the head whole beside the adapters")
    return {
        "rank": config.integer("lora_rank", 8),
        "alpha": config.integer("lora_alpha", None),
        "lora_dropout": config.number("lora_dropout", 0.0),
        "target_modules": "all-linear" if targets in ([], ["all"]) else ",".join(targets),
        "modules_to_save": ",".join(saved) or None,
        "dora": config.flag("use_dora"),
        "rslora": config.flag("use_rslora"),
    }


def _dtypes(config: Config, method: str) -> dict[str, Any]:
    bf16, fp16, pure = config.flag("bf16"), config.flag("fp16"), config.flag("pure_bf16")
    if bf16 and fp16:
        config.faults.append("bf16 and fp16 are both on: switch one off")
    if method == "full" and not pure:
        config.leave(
            "finetuning_type",
            more("without pure_bf16 the weights are float32: weights, gradients and optimizer take twice what is said"),
        )
    elif pure and method != "full":
        config.notes.append("pure_bf16: adapters stay in bfloat16; modelled in float32, which takes more")
        config.asks.add("pure_bf16")
    if not (bf16 or fp16 or pure):
        config.notes.append("neither bf16 nor fp16: LLaMA-Factory trains without autocast; modelled with it")
        return {}
    half = "float16" if fp16 else "bfloat16"
    return {"compute_dtype": half, "load_dtype": half}


def _attention(config: Config) -> dict[str, Any]:
    kernel = config.text("flash_attn", "auto", ("auto", "disabled", "sdpa", "fa2", "fa3"))
    if kernel in (None, "auto"):
        return {}
    return {"attention": ATTENTIONS[kernel]}


def _images(config: Config) -> dict[str, Any]:
    """Images of rows: each is made smaller until it has so many pixels (data/mm_plugin.py, _preprocess_image)."""
    pixels = config.integer("image_max_pixels", None)
    if pixels is None:
        return {}
    if config.flag("freeze_vision_tower", True):
        config.leave("freeze_vision_tower", less("the tower has no adapters; counted as if it had"))
    side = isqrt(pixels)
    return config.images(side, side)


def _packing(config: Config, stage: str, options: Mapping[str, Any]) -> dict[str, Any]:
    neat = config.flag("neat_packing")
    packed = config.flag("packing", stage == "pt") or neat
    if not packed:
        return {}
    config.notes.append("packing: every row is full")
    if not neat or config.raw.get("flash_attn") == "fa2":
        return {"padding": False}
    # data/collator.py, prepare_4d_attention_mask: one number of the compute dtype for each pair of a row's tokens. With
    # a mask attention takes the kernel that batches with padding take.
    mask_bytes = 2 * options["batch_size"] * options["seq_len"] ** 2
    why = "a mask with a number for each pair of tokens, but for flash_attn: fa2"
    config.beyond.append(Beyond(key="neat_packing: true", what=why, direction="up", at_most_bytes=mask_bytes))
    return {"padding": True}


def _upcasts(config: Config) -> None:
    """model_utils/checkpointing.py: norms in float32, whose outputs are then float32 too, and logits in float32."""
    if config.flag("upcast_layernorm"):
        # PEFT's cast takes norms, and embedding and head beside them, whose float32 runs through all layers.
        why = "norms in float32, which takes less than casting all 16-bit weights (--upcast)"
        config.between.append(Between(key="upcast_layernorm: true", what=why, changes={"upcast": True}))
    if config.flag("upcast_lmhead_output"):
        config.asks.add("upcast_lmhead_output")


def _evaluation(config: Config) -> dict[str, Any]:
    held_out = any([config.number("val_size", 0.0), config.get("eval_dataset")])
    strategy = config.text("eval_strategy", "no", ("no", "steps", "epoch"))
    scheduled = config.flag("do_eval") or strategy != "no"
    size = config.integer("per_device_eval_batch_size", _BATCH_SIZE)
    return {"eval_batch_size": size} if held_out and scheduled else {}
