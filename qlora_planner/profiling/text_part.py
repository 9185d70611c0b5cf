"""The text part of a model that takes images or sound too: what is planned of it, until its other parts are counted."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from transformers import AutoModelForCausalLM

from qlora_planner.errors import InputError
from qlora_planner.profiling.meta_model import make_config

# Text parts without a causal language model of their own in transformers, and the model type that has the very same
# tensors (tests/tracing/test_text_part.py compares). They differ in how positions are told, which takes nothing.
_SAME_TENSORS = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
# Text parts whose causal language model transformers' auto class knows by the whole model's config alone.
_TEXT_CLASSES = {"mllama_text_model": "MllamaForCausalLM"}
_TIED = "tie_word_embeddings"


def text_part(raw: Mapping[str, Any], location: str) -> tuple[Mapping[str, Any], str | None]:
    """The config of the text part of a parsed config.json, and the model type that it is a part of.

    The config as it is and None for a model of text alone. Raises InputError for a text part that transformers has no
    causal language model for, and as `make_config` does.
    """
    if not isinstance(raw.get("model_type"), str) or not _sees_or_hears(raw):
        return raw, None
    config = make_config(deepcopy(dict(raw)), location)  # transformers completes nested parts of a config in place
    text, whole = config.get_text_config(decoder=True), str(raw["model_type"])
    if text is config or not _other_parts(config):
        return raw, None
    classes = AutoModelForCausalLM._model_mapping
    if type(text) in classes:
        return _of(raw, config, text, text.model_type, classes[type(text)].__name__), whole
    if text.model_type in _TEXT_CLASSES:
        return _of(raw, config, text, text.model_type, _TEXT_CLASSES[text.model_type]), whole
    if text.model_type in _SAME_TENSORS:
        return _of(raw, config, text, _SAME_TENSORS[text.model_type], None), whole
    raise InputError(
        f"{location}: {whole} takes images or sound too, and transformers has no causal language model for its text"
        f" part ({text.model_type}): such a model cannot be planned yet"
    )


def _sees_or_hears(raw: Mapping[str, Any]) -> bool:
    """Whether a config has another part than text, or may have one by its class's defaults."""
    return any(name.endswith("_config") and name != "quantization_config" for name in raw)


def _other_parts(config: Any) -> bool:
    return any("vision" in name or "audio" in name for name in getattr(type(config), "sub_configs", {}))


def _of(raw: Mapping[str, Any], config: Any, text: Any, model_type: str, class_name: str | None) -> Mapping[str, Any]:
    fields = {name: value for name, value in text.to_dict().items() if name not in ("architectures", "_name_or_path")}
    inner = raw.get("text_config")
    said = [part[_TIED] for part in (raw, inner) if isinstance(part, Mapping) and part.get(_TIED) is not None]
    fields |= {"model_type": model_type, _TIED: bool(said[0] if said else getattr(config, _TIED, False))}
    rope = fields.get("rope_parameters")
    if isinstance(rope, Mapping) and model_type != text.model_type:
        # Sections are for positions in pictures: text has one position a token.
        rope = {name: value for name, value in rope.items() if not name.startswith("mrope")}
        fields["rope_parameters"] = rope | ({"rope_type": "default"} if rope.get("rope_type") == "mrope" else {})
    if class_name is not None:
        fields["architectures"] = [class_name]
    if raw.get("quantization_config") is not None:
        fields["quantization_config"] = raw["quantization_config"]
    return fields
