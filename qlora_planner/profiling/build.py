"""build_profile: from a config.json's fields to the ModelProfile, in about a second."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from qlora_planner.catalog import TRAINER_ROWS
from qlora_planner.errors import InputError
from qlora_planner.memory.options.stored_checkpoint import stored_quantization
from qlora_planner.profiling import adapters
from qlora_planner.profiling.inventory import Layers, pattern, tensor_groups
from qlora_planner.profiling.meta_model import build_on_meta, installed_versions, quantize_on_meta, skipped_modules
from qlora_planner.profiling.refusals import Prober
from qlora_planner.profiling.text_part import text_part
from qlora_planner.profiling.whole import tower_of, whole_config
from qlora_planner.spec.model import AdapterTensor, ModelProfile
from qlora_planner.text import quoted
from qlora_planner.train.adapters import attention_modules
from qlora_planner.train.images import image_dims

# Dimensions that people ask about and that closed forms use; a class that lacks one has None.
DIMENSIONS = (
    "hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window", "moe_intermediate_size",
    "num_experts", "num_local_experts", "num_experts_per_tok",
)  # fmt: skip


# Fields that some configs keep under a name of their own without mapping it.
OTHER_NAMES = {"max_position_embeddings": "max_seq_len"}
# Runs whose refusal is kept in the profile, under the option's value.
PROBES: dict[str, dict[str, Any]] = {
    **{row.name: {"trainer": row.name} for row in TRAINER_ROWS.values() if row.instead is not None},
    "int8": {"quant": "int8"},
}
# Models trained on longer sequences compute their positions.
LONGEST_PROBE = 4096
# A table of positions may have a few rows more than positions (OPT's has two).
_SPARE_ROWS = 8


class ConfigSource(Protocol):
    """What a profile is built from: the parsed config.json, the model's name, and the config's hash."""

    @property
    def id(self) -> str: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def sha256(self) -> str: ...


def build_profile(
    source: ConfigSource, note: str | None = None, prober: Prober | None = None, whole_model: bool = False
) -> ModelProfile:
    """Profile one model: inventory, replacement audit, adapter injection, what breaks. No weights are read.

    Of a model that takes images its text part alone, or with `whole_model` all of it. `prober` carries what is known
    about classes from one model to the next.
    Raises InputError when the config cannot be built or adapted, MissingError for an unknown model type.
    """
    prober = prober or Prober()
    location = source.id
    raw, whole = (whole_config(source.config, location), None) if whole_model else text_part(source.config, location)
    model, plan_bfloat16 = build_on_meta(raw, location)
    params = sum(parameter.numel() for parameter in model.parameters())
    skipped = frozenset(skipped_modules(model))
    quantized = _quantized(raw, location)
    replaced = frozenset(
        name for name, module in quantized.named_modules() if type(module).__name__ == "Linear4bit"
    )  # fmt: skip
    layers = Layers(model, replaced)
    plans = {"bfloat16": plan_bfloat16, "float16": dict(model._get_dtype_plan(torch.float16))}
    supports, dims = supports_of(model), _dimensions(model)
    if whole_model:
        dims |= image_dims(model.config)
    kernel = "sdpa" if supports["sdpa"] else "eager"
    key = (type(model).__name__, kernel)

    def breaks(targets: str | list[str]) -> str | None:
        joined = targets if isinstance(targets, str) else ",".join(targets)
        return prober.refusal(raw, key, target_modules=joined, attention=kernel)

    target, added, refusals = adapters.widest_target(lambda: _quantized(raw, location), layers, breaks)
    for name, options in PROBES.items():
        refusal = prober.refusal(raw, key, target_modules=target, attention=kernel, **options)
        if refusal is not None:
            refusals[name] = refusal
    rows, limit = position_rows(model, dims), int(dims.get("max_position_embeddings") or 0)
    if rows is None and 0 < limit <= LONGEST_PROBE:
        longer = {"target_modules": target, "attention": kernel, "seq_len": limit + 1}
        rows = None if prober.refusal(raw, key, **longer) is None else limit
    if rows is not None:
        dims["position_rows"] = rows
    by_target: dict[str, tuple[AdapterTensor, ...]] = {target: added}
    if attention := attention_modules(model):
        patterns = {pattern(name) for name in attention}
        by_target["attention"] = tuple(tensor for tensor in added if tensor.module in patterns)
    return ModelProfile(
        id=source.id,
        model_type=model.config.model_type,
        class_name=type(model).__name__,
        config_sha256=source.sha256,
        params=params,
        versions=installed_versions(),
        dims=dims,
        supports=supports,
        layer_kinds=layers.kinds,
        layer_order=layers.order(),
        tensors=tensor_groups(model, layers, replaced, skipped, plans),
        adapters=by_target,
        refusals=refusals,
        checkpoint_quantization=stored_quantization(raw),
        note=note,
        text_part_of=whole,
        tower=tower_of(model) if whole_model else None,
    )


def _quantized(raw: Mapping[str, Any], location: str) -> PreTrainedModel:
    return quantize_on_meta(build_on_meta(raw, location)[0])


def _dimensions(model: PreTrainedModel) -> dict[str, int | float | None]:
    text = model.config.get_text_config(decoder=True)
    # The plain dictionary, because some configs refuse to answer for fields that differ from layer to layer.
    fields = text.to_dict()
    names = getattr(text, "attribute_map", {})
    dims: dict[str, int | float | None] = {}
    for name in DIMENSIONS:
        value = fields.get(name, fields.get(names.get(name, OTHER_NAMES.get(name, name))))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            dims[name] = value
    if "head_dim" not in dims and dims.get("num_attention_heads"):
        dims["head_dim"] = int(dims["hidden_size"] or 0) // int(dims["num_attention_heads"] or 1)
    return dims


def position_rows(model: PreTrainedModel, dims: Mapping[str, int | float | None]) -> int | None:
    """How many positions the model has, where it looks them up in a table: longer sequences break it.

    A table is a parameter or buffer outside the input embedding with about as many rows as the config names positions.
    None where positions are computed (rotary, ALiBi).
    """
    limit = int(dims.get("max_position_embeddings") or 0)
    if not limit:
        return None
    embedding = getattr(model.get_input_embeddings(), "weight", None)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        table = tensor.dim() == 2 and limit <= tensor.shape[0] <= limit + _SPARE_ROWS
        if table and tensor is not embedding and re.search(r"wpe|position", name):
            return limit
    return None


def supports_of(model: PreTrainedModel) -> dict[str, bool]:
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

    Raises InputError when no module matches, RefusedError in PEFT's words when it refuses one.
    """
    names = [name for name in targets.split(",") if name]
    if not names:
        raise InputError(f"target_modules {quoted(targets)} names no module")
    raw = whole_config(source.config, source.id) if profile.tower else text_part(source.config, source.id)[0]
    model, _ = build_on_meta(raw, source.id)
    layers = Layers(model, frozenset())
    return adapters.single_target(lambda: _quantized(raw, profile.id), names, layers)
