"""Config files of tools that are not read here, known by their keys: told by name, never taken for another tool's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Condition = Callable[[Mapping[str, Any]], bool]


def foreign(raw: Mapping[str, Any]) -> str | None:
    """What a parsed file is, in words that follow `is`; None for what may be read here."""
    return next((name for name, fits in _FORMATS.items() if fits(raw)), None)


def _has(*names: str, of: int = 1) -> Condition:
    """At least `of` of these keys."""
    return lambda raw: sum(name in raw for name in names) >= of


def _all(*conditions: Condition) -> Condition:
    return lambda raw: all(condition(raw) for condition in conditions)


def _lacks(*names: str) -> Condition:
    return lambda raw: not any(name in raw for name in names)


def _holds(*names: str) -> Condition:
    """These keys hold names with values."""
    return lambda raw: all(isinstance(raw.get(name), Mapping) for name in names)


def _is_torchtune(raw: Mapping[str, Any]) -> bool:
    """Its recipes name the class to build by `_component_`."""
    return any(isinstance(value, Mapping) and "_component_" in value for value in raw.values())


# Ordered: the first that matches is told. Keys from each tool's own examples: torchtune recipes/configs, unsloth
# studio/backend/assets/configs, LLaMA-Factory src/llamafactory/v1/config, ms-swift's command line of 2, 3 and 4.
_FORMATS: Mapping[str, Condition] = {
    "a torchtune recipe": _is_torchtune,
    "a config of Unsloth Studio": _all(_holds("training"), _has("lora", "logging", "data", "inference"),
                                       _lacks("base_model", "model_name_or_path")),
    "a config of LLaMA-Factory v1": _all(
        _has("model"), _lacks("model_name_or_path"),
        _has("peft_config", "quant_config", "kernel_config", "dist_config", "init_config", "model_class",
             "train_dataset", "sample_backend"),
    ),
    "a config of ms-swift": _all(
        _lacks("base_model", "model_name_or_path"),
        _has("tuner_type", "train_type", "sft_type", "rlhf_type", "quant_bits", "quant_method", "split_dataset_ratio",
             "model_id_or_path", "lora_target_modules", "target_modules", "torch_dtype", "dataset_num_proc"),
        _has("model", "model_type", "model_id_or_path"),
    ),
    "a config of AutoTrain": _all(_has("base_model"), _has("task"), _has("project_name", "backend", "params")),
    "a config of Ludwig": _has("input_features"),
    "a config of litgpt": _all(_has("checkpoint_dir"), _has("lora_r", "quantize", "precision")),
    "a config of mlx-lm": _all(_has("model"), _has("lora_parameters", "iters", "num_layers")),
    "a config of verl": _has("actor_rollout_ref"),
    "an accelerate config, which says where a run runs and not which": _all(
        _has("distributed_type"), _has("compute_environment", "mixed_precision", "num_processes")
    ),
    "a DeepSpeed config, which says where a run runs and not which": _has("zero_optimization"),
    "an adapter's own config": _has("peft_type"),
    "a model's own config: `qlora-plan estimate` takes it as MODEL": _all(_has("architectures"), _has("model_type")),
}  # fmt: skip
