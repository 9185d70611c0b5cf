"""build_profile: from a config.json's fields to the ModelProfile, in about a second."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from qlora_planner.errors import InputError
from qlora_planner.profile import AdapterTensor, ModelProfile
from qlora_planner.profiling import adapters
from qlora_planner.profiling.inventory import Layers, pattern, tensor_groups
from qlora_planner.profiling.meta_model import build_on_meta, installed_versions, quantize_on_meta, skipped_modules

# Dimensions that people ask about and that closed forms use; a class that lacks one has None.
DIMENSIONS = (
    "hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window", "moe_intermediate_size",
    "num_experts", "num_local_experts", "num_experts_per_tok",
)  # fmt: skip


class ConfigSource(Protocol):
    """What a profile is built from: the parsed config.json, the model's name, and the config's hash."""

    @property
    def id(self) -> str: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def sha256(self) -> str: ...


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a config's canonical JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def build_profile(source: ConfigSource, note: str | None = None) -> ModelProfile:
    """Profile one model: inventory, replacement audit, adapter injection. No weights are read.

    Raises InputError when the config cannot be built or adapted, MissingError for an unknown model type.
    """
    raw, where = source.config, source.id
    model, plan_bfloat16 = build_on_meta(raw, where)
    params = sum(parameter.numel() for parameter in model.parameters())
    skipped = frozenset(skipped_modules(model))
    quantized = _quantized(raw, where)
    replaced = frozenset(
        name for name, module in quantized.named_modules() if type(module).__name__ == "Linear4bit"
    )  # fmt: skip
    layers = Layers(model, replaced)
    plans = {"bfloat16": plan_bfloat16, "float16": dict(model._get_dtype_plan(torch.float16))}
    target, added, refusals = adapters.widest_target(lambda: _quantized(raw, where), layers)
    by_target: dict[str, tuple[AdapterTensor, ...]] = {target: added}
    if attention := adapters.attention_modules(model):
        patterns = {pattern(name) for name in attention}
        by_target["attention"] = tuple(tensor for tensor in added if tensor.module in patterns)
    return ModelProfile(
        id=source.id,
        model_type=model.config.model_type,
        class_name=type(model).__name__,
        config_sha256=source.sha256,
        params=params,
        versions=installed_versions(),
        dims=_dimensions(model),
        supports=_supports(model),
        layer_kinds=layers.kinds,
        layer_order=layers.order(),
        tensors=tensor_groups(model, layers, replaced, skipped, plans),
        adapters=by_target,
        refusals=refusals,
        checkpoint_quantization=stored_quantization(raw),
        note=note,
    )


def stored_quantization(raw: Mapping[str, Any]) -> str | None:
    """How the checkpoint says its weights are already quantised, e.g. `bitsandbytes-4bit`, `mxfp4`, `fp8`; or None."""
    stored = raw.get("quantization_config")
    if not isinstance(stored, Mapping):
        return None
    method = str(stored.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in stored else "unknown"))
    if method == "bitsandbytes" or "load_in_8bit" in stored:
        return "bitsandbytes-8bit" if stored.get("load_in_8bit") else "bitsandbytes-4bit"
    return method.lower()


def _quantized(raw: Mapping[str, Any], where: str) -> PreTrainedModel:
    return quantize_on_meta(build_on_meta(raw, where)[0])


def _dimensions(model: PreTrainedModel) -> dict[str, int | float | None]:
    text = model.config.get_text_config(decoder=True)
    # The plain dictionary, because some configs refuse to answer for fields that differ from layer to layer.
    fields = text.to_dict()
    names = getattr(text, "attribute_map", {})
    found: dict[str, int | float | None] = {}
    for name in DIMENSIONS:
        value = fields.get(name, fields.get(names.get(name, name)))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found[name] = value
    if "head_dim" not in found and found.get("num_attention_heads"):
        found["head_dim"] = int(found["hidden_size"] or 0) // int(found["num_attention_heads"] or 1)
    return found


def _supports(model: PreTrainedModel) -> dict[str, bool]:
    """Ask the class itself which attention kernels it dispatches and whether it can checkpoint."""
    return {
        "eager": True,
        "sdpa": _dispatches(model, "sdpa"),
        "flash_attention_2": bool(model._supports_flash_attn),
        "gradient_checkpointing": bool(model.supports_gradient_checkpointing),
    }


def _dispatches(model: PreTrainedModel, kernel: str) -> bool:
    try:
        return bool(model.get_correct_attn_implementation(kernel, is_init_check=True) == kernel)
    except ValueError:
        return False


def profile_target(source: ConfigSource, targets: str, profile: ModelProfile) -> tuple[AdapterTensor, ...]:
    """Inject adapters on other modules than the profile holds; `targets` is names joined by commas.

    Raises InputError with PEFT's words when no module matches or PEFT refuses one.
    """
    names = [name for name in targets.split(",") if name]
    if not names:
        raise InputError(f"target_modules {targets!r} names no module")
    model, _ = build_on_meta(source.config, source.id)
    layers = Layers(model, frozenset())
    return adapters.single_target(lambda: _quantized(source.config, profile.id), names, layers)
