"""axolotl configs read as a run. See `axolotl_keys` for every key and what it means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qlora_planner.catalog.attention import nearest_kernel
from qlora_planner.catalog.trainers import DEFAULT_TRAINER, trainer_of_format, trainer_of_stage
from qlora_planner.exchange.axolotl.keys import (
    FAMILIES,
    IMAGES,
    KERNELS_KEEP_LESS,
    NEUTRAL,
    NOT_MODELLED,
    PLUGIN,
    PLUGINS,
    RL,
    USED,
)
from qlora_planner.exchange.axolotl.versions import Release, release_of
from qlora_planner.exchange.effects import SLIGHT, either, less, more
from qlora_planner.exchange.parsed_config import NOTHING, Config, Reading
from qlora_planner.exchange.several_cards.sharing import Beyond
from qlora_planner.exchange.several_cards.tools import of_axolotl
from qlora_planner.text import listed, quoted

FORMAT = "axolotl"
STANDS_IN = "axolotl trains through transformers' Trainer; modelled as hf-trainer"
# axolotl sets this before it imports torch (utils/__init__.py, set_pytorch_cuda_alloc_conf).
ALLOC_CONF = "expandable_segments:True"
LIGER_PARTS = ("liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_fused_linear_cross_entropy")
FUSED_LOSS = "liger_fused_linear_cross_entropy"
KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
# In the order in which axolotl looks at its deprecated switches.
_OLD_ATTENTION = {
    "xformers_attention": "xformers",
    "sage_attention": "sage",
    "flex_attention": "flex_attention",
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
}
_ATTENTIONS = {name: name for name in ("eager", "sdpa", "flash_attention_2")}
_ATTENTIONS["kernels-community/flash-attn2"] = "flash_attention_2"


def is_axolotl(raw: Mapping[str, Any]) -> bool:
    """Whether a parsed file is an axolotl config: it alone names its model `base_model`."""
    return "base_model" in raw


def read(raw: Mapping[str, Any], location: str, stack: Mapping[str, str] = NOTHING) -> Reading:
    """A parsed axolotl config, with the defaults of the release that `stack` names (see `release_of`).

    Raises InputError naming `location` and every fault: no model, values of the wrong kind, switches that exclude each
    other, an optimizer whose memory is not known.
    """
    config, release = Config(raw, location), release_of(stack)
    model_id = config.model("base_model")
    options: dict[str, Any] = {"trainer": trainer_of_format(FORMAT).name, "upcast": False, "alloc_conf": ALLOC_CONF}
    config.notes.append(STANDS_IN)
    options |= _method(config)
    options |= _adapters(config) if options["method"] != "full" else {}
    options |= _dtypes(config)
    options |= _sizes(config)
    options |= _checkpointing(config, release)
    options |= _attention(config)
    options |= {"optimizer": config.optimizer("optimizer", "adamw_torch_fused")}
    options |= _images(config)
    options |= _plugins(config, options)
    options |= _evaluation(config, options["batch_size"])
    skips = config.flag("embeddings_skip_upcast", release.casts_embeddings is False)
    if options["quant"] != "none" and not skips:
        # loaders/model.py: prepare_model_for_kbit_training, and embeddings and head back to 16 bits afterwards.
        unsure = raw.get("embeddings_skip_upcast") is None and release.casts_embeddings is None
        since = ", before axolotl 0.20" if unsure else ""
        config.casts_while_preparing = f"embeddings and head in float32 while preparing{since}"
    options |= _preference(config, release)
    _own_kernels(config, options)
    _routers(config)
    _mask_of_rows(config, options)
    of_axolotl(config, options)
    return config.finish(
        FORMAT, model_id, options, used=USED, neutral=NEUTRAL, families=FAMILIES, not_modelled=NOT_MODELLED
    )


def _preference(config: Config, release: Release) -> dict[str, Any]:
    """axolotl hands trl's own trainer the base model and the adapters' config (core/builders/rl.py)."""
    named, beta, losses = config.get("rl"), config.get("rl_beta"), config.names("dpo_loss_type")
    precomputes = config.flag("precompute_ref_log_probs")
    row = trainer_of_stage(FORMAT, "dpo" if named == "ipo" else str(named))
    if row is None:
        if RL.asked(named):
            config.leave("rl", RL)
        return {}
    config.notes[:] = [note for note in config.notes if note != STANDS_IN]
    config.notes.append(f"rl: {named} is {row.name}, through the trl that axolotl installs: before 1.15 it takes more")
    if release.scores_whole_logits(row.name):
        why = "holds the whole logits of every pass, which are not counted; --stack trl=1.16 says that it is newer"
        config.beside(f"trl {release.trl} of {release.named}", more(why))
    losses = ["ipo"] if named == "ipo" else losses
    return {
        "trainer": row.name,
        "packing": False,
        "padding": None,
        "upcast": None if row.prepares_quantized else False,
        "beta": None if beta is None else config.number("rl_beta", 0.0),
        "loss_type": ",".join(losses) or None if "loss_type" in row.own_options else None,
        "precompute_ref_log_probs": precomputes or None,
    }


def _method(config: Config) -> dict[str, Any]:
    """What is trained, and how the base is stored."""
    adapter = config.text("adapter", None, ("lora", "qlora"))
    four, eight = config.flag("load_in_4bit"), config.flag("load_in_8bit")
    kwargs = config.get("bnb_config_kwargs") or {}
    if four and eight:
        config.faults.append("load_in_4bit and load_in_8bit are both on: a weight is stored one way, so switch one off")
    elif (four or eight) and adapter is None and config.raw.get("adapter") is None:
        on = "load_in_4bit" if four else "load_in_8bit"
        config.faults.append(f"{on} without adapter: quantised weights are not trained; add adapter: qlora or lora")
    elif adapter == "qlora" and not four:
        config.faults.append("adapter: qlora needs load_in_4bit: true, and no load_in_8bit")
    elif adapter == "lora" and four:
        config.faults.append("load_in_4bit with adapter: lora leaves the base in 16 bits; write adapter: qlora")
    if not isinstance(kwargs, Mapping):
        config.faults.append(f"bnb_config_kwargs must hold names with values, not {quoted(kwargs)}")
        kwargs = {}
    if not adapter:
        return {"method": "full", "quant": "none"}
    if not four:
        return {"method": "qlora", "quant": "int8"} if eight else {"method": "lora", "quant": "none"}
    experts = {"expert_quant": "nf4"} if config.flag("quantize_moe_experts") else {}
    others = sorted(set(kwargs) - {"bnb_4bit_use_double_quant", "bnb_4bit_quant_type", "bnb_4bit_quant_storage"})
    if others:
        why = f"{listed(others)}: other settings of bitsandbytes"
        config.leave("bnb_config_kwargs", either(why))
    return {
        "method": "qlora",
        "quant": kwargs.get("bnb_4bit_quant_type", "nf4"),
        "double_quant": kwargs.get("bnb_4bit_use_double_quant", True),
        **experts,
    }


def _adapters(config: Config) -> dict[str, Any]:
    rank = config.integer("lora_r", None)
    if rank is None and config.get("lora_r") is None:
        config.faults.append("adapter without lora_r: name the rank")
    saved = config.names("lora_modules_to_save")
    return {
        "rank": rank or 1,
        "alpha": config.integer("lora_alpha", None),
        "lora_dropout": config.number("lora_dropout", 0.0),
        "target_modules": _targets(config),
        "modules_to_save": ",".join(saved) or None,
        "dora": config.flag("peft_use_dora"),
        "rslora": config.flag("peft_use_rslora"),
    }


def _targets(config: Config) -> str | None:
    named = config.get("lora_target_modules")
    if config.flag("lora_target_linear") or named == "all-linear":
        if named and named != "all-linear":
            why = "beside lora_target_linear, which takes all linear layers already"
            config.leave("lora_target_modules", either(why, SLIGHT))
        return "all-linear"
    if isinstance(named, str) and not re.fullmatch(r"[\w.]+", named):
        config.target_pattern = named
        config.leave("lora_target_modules", less("a pattern; taken as all linear layers", 0.3))
        return "all-linear"
    names = config.names("lora_target_modules")
    if not names:
        config.notes.append("no lora_target_linear and no lora_target_modules: taken as all linear layers")
    return ",".join(names) or None


def _dtypes(config: Config) -> dict[str, Any]:
    """axolotl's own order (utils/config, resolve_dtype): bf16 wins over fp16, and `auto` asks the card.

    `auto` stands where bf16 is absent; a null is no absence, but off.
    """
    auto = config.get("bf16") == "auto" or "bf16" not in config.raw
    bf16, fp16 = not auto and config.flag("bf16"), config.flag("fp16")
    weights = [key for key in ("bfloat16", "float16") if config.flag(key)]
    if weights and not (bf16 or fp16 or auto):
        config.notes.append(f"{weights[0]} without bf16 or fp16 trains without autocast; modelled with it")
    if bf16 or "bfloat16" in weights:
        return dict.fromkeys(("compute_dtype", "load_dtype"), "bfloat16")
    if fp16 or "float16" in weights:
        return dict.fromkeys(("compute_dtype", "load_dtype"), "float16")
    if auto:
        return {}
    config.leave("bf16", more("neither bf16 nor fp16: all is in float32, which takes about twice what is said"))
    return {"compute_dtype": "float32"}


def _sizes(config: Config) -> dict[str, Any]:
    micro, accumulated = config.integer("micro_batch_size", None), config.integer("gradient_accumulation_steps", None)
    whole = config.integer("batch_size", None)
    if whole is not None and accumulated is not None:
        config.faults.append("batch_size and gradient_accumulation_steps are both given: leave one out")
    elif (micro, accumulated, whole).count(None) > 1 and not config.faults:
        config.faults.append("two of micro_batch_size, gradient_accumulation_steps and batch_size must be given")
    micro = micro or 1
    sizes = {
        "seq_len": config.integer("sequence_len", 512),
        "batch_size": micro,
        "grad_accum": accumulated or max(1, (whole or micro) // micro),
    }
    if config.flag("sample_packing"):
        config.notes.append("sample_packing: rows are full, micro_batch_size x sequence_len tokens in each micro-batch")
        sizes["padding"] = False
    return sizes


def _checkpointing(config: Config, release: Release) -> dict[str, Any]:
    value = config.get("gradient_checkpointing")
    if value == "offload_disk":
        config.leave(
            "gradient_checkpointing", less("layer inputs wait outside the card, which needs less than is said")
        )
    on = value in ("offload", "offload_disk") or config.flag("gradient_checkpointing")
    options = {"gradient_checkpointing": on, "use_reentrant": config.reentrant(release.reenters) and on}
    options |= config.checkpointed() if on else {}
    if value == "offload":
        options["checkpoint_offload"] = True
    if options.get("checkpoint_offload"):
        why = "layer inputs wait in host memory, and the card needs less than is said"
        config.stand_in("offloaded checkpoints", less(why), checkpoint_offload=False)
    if options["use_reentrant"]:
        config.stand_in("re-entrant checkpointing", either("modelled without re-entering", SLIGHT), use_reentrant=False)
    return options


def _attention(config: Config) -> dict[str, Any]:
    old = [name for name in _OLD_ATTENTION if config.flag(name)]
    named = config.text("attn_implementation")
    if named is not None and old:
        config.faults.append(f"attn_implementation and {old[0]} are both given: leave the latter out")
    key = old[0] if old and named is None else "attn_implementation"
    kernel = _OLD_ATTENTION[old[0]] if old and named is None else named
    if kernel is None:
        return {}
    if nearest_kernel(kernel) is not None:
        return {"attention": _ATTENTIONS.get(kernel, kernel)}
    if kernel not in _ATTENTIONS:
        config.leave(key, either("taken as flash_attention_2"))
    return {"attention": _ATTENTIONS.get(kernel, "flash_attention_2")}


def _images(config: Config) -> dict[str, Any]:
    """Images of rows that a processor reads (processing_strategies.py): resized to a width and height, or padded to a
    square. Without a size they are as the data has them, which nobody says here."""
    size, processor = config.asked("image_size"), config.asked("processor_type")
    if processor is None:
        config.seen.pop("image_size", None)
        return {}
    if size is None:
        config.leave("processor_type", IMAGES)
        return {}
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list) or len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        config.faults.append(f"image_size must be pixels, or a list of width and height, not {quoted(size)}")
        return {}
    return config.images(*sides)


def _plugins(config: Config, options: Mapping[str, Any]) -> dict[str, Any]:
    """Liger, whose fused kernels together are what a run's `liger` means; losses without whole logits; the others."""
    plugins = config.names("plugins")
    # The plugin switches its loss on unless it is told not to (integrations/cut_cross_entropy/args.py).
    cut = config.flag("cut_cross_entropy", True) and any("cut_cross_entropy" in name for name in plugins)
    parts = {
        "liger_glu_activation" if name == "liger_swiglu" else name
        for name in (*LIGER_PARTS, "liger_swiglu")
        if config.flag(name)
    }
    liger = any("integrations.liger" in name for name in plugins)
    others = [name for name in plugins if "integrations.liger" not in name and "cut_cross_entropy" not in name]
    for name in others:
        effect = next((effect for part, effect in PLUGINS.items() if part in name), PLUGIN)
        config.leave("plugins", replace(effect, why=f"{quoted(name)}: {effect.why}"))
    if liger and parts == set(LIGER_PARTS) and not cut:
        return {"liger": True}
    for name in sorted(parts - {FUSED_LOSS}) if liger else ():
        config.leave(name, less("a part of Liger alone; modelled without it", 0.25))
    if cut or (liger and FUSED_LOSS in parts):
        return _without_logits(config, options, "cut cross-entropy" if cut else "Liger's fused loss")
    return {}


def _without_logits(config: Config, options: Mapping[str, Any], loss: str) -> dict[str, Any]:
    """A loss that is computed inside the head: cut_cross_entropy's, or Liger's without its other kernels.

    Where it is not traced trl-sft's stands in, which makes a tile of logits, with adapters in bfloat16 for float32.
    """
    if options.get("compute_dtype") != "float16":  # which trl-sft does not take here
        packed = {"packing": True, "padding": None} if "padding" in options else {}
        effect = either("taken as trl-sft's loss, with adapters in bfloat16 for float32", 0.1)
        config.stand_in(loss, effect, trainer=DEFAULT_TRAINER, loss_kernel=None, **packed)
        config.loss_stands_in = True
    return {"loss_kernel": "cut-cross-entropy" if loss.startswith("cut") else "liger-fused"}


def _evaluation(config: Config, micro: int) -> dict[str, Any]:
    held_out = any([config.number("val_set_size", 0.0), config.get("test_datasets")])
    strategy = config.text("eval_strategy")
    scheduled = any([config.get("eval_steps"), config.get("evals_per_epoch"), strategy not in (None, "no")])
    size = config.integer("eval_batch_size", micro)
    return {"eval_batch_size": size} if held_out and scheduled and strategy != "no" else {}


def _routers(config: Config) -> None:
    """Overrides of the model's config that ask for its routers' loss alone: a number for each token and expert."""
    for key in ("model_config", "overrides_of_model_config"):
        value = config.raw.get(key)
        if isinstance(value, Mapping) and set(value) == {"output_router_logits"}:
            config.leave(key, more("logits of routers are kept for their loss", 0.05))


def _mask_of_rows(config: Config, options: Mapping[str, Any]) -> None:
    """What keeps samples of a packed row apart where its kernel takes no lengths (schemas/enums.py,
    ATTN_IMPLS_SUPPORTING_PACKING; core/trainers/base.py): rows stay apart too, and each has a mask for all its pairs.

    One byte a pair, and two in the compute dtype while a layer computes. Of sdpa axolotl takes the kernel with lengths
    where torch and the model have it (sdpa_varlen), without a mask.
    """
    if config.flag("sample_packing") and options.get("attention") in (None, "sdpa", "eager") and "rl" not in config.raw:
        mask_bytes = 3 * options["batch_size"] * options["seq_len"] ** 2
        what = "a mask of each packed row, where attention takes no lengths as FlashAttention does"
        config.beyond.append(Beyond(key="sample_packing: true", what=what, direction="up", at_most_bytes=mask_bytes))


def _own_kernels(config: Config, options: Mapping[str, Any]) -> None:
    """axolotl switches its LoRA kernels on by itself (schemas/config, check_auto_enable_lora_kernels)."""
    given = any(config.raw.get(name) is not None for name in KERNELS)
    refused = config.raw.get("rl") or config.raw.get("trust_remote_code") or options["quant"] == "int8"
    if options["method"] != "full" and not given and not refused:
        # Without checkpointing the layers keep what these do not, all of them at once.
        effect = KERNELS_KEEP_LESS if options["gradient_checkpointing"] else replace(KERNELS_KEEP_LESS, at_most=None)
        why = "axolotl switches them on by itself, and they keep less of a layer than PEFT's code"
        config.beside("fused LoRA kernels", replace(effect, why=why))
