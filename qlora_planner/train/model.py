"""The model of a run: transformers' own class, loaded by its own loader, with random or real weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_planner.catalog.classifiers import labels_of
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.errors import InputError, MissingError, RefusedError
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import quoted
from qlora_planner.train.data import PAD
from qlora_planner.train.options import compute_dtype, loading_options, torch_dtype
from qlora_planner.train.unsloth import model as unsloth
from qlora_planner.train.weights import random_state_dict

# How a checkpoint was stored, or which code made it: not what the model is.
_NOT_ARCHITECTURE = ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "quantization_config")


def model_config(raw: Mapping[str, Any], labels: int | None = None) -> Any:
    """transformers' config object of a parsed config.json; of a sequence classifier with so many `labels`.

    Raises InputError where it lacks a model type, MissingError where the installed transformers has no such model.
    """
    import transformers
    from transformers import AutoConfig

    fields = {key: copy.deepcopy(value) for key, value in raw.items() if key not in _NOT_ARCHITECTURE}
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise InputError("config lacks model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        raise MissingError(
            f"model_type {quoted(model_type)} is not in transformers {transformers.__version__};"
            " a newer one may have it"
        )
    config = AutoConfig.for_model(model_type, **fields)
    return config if labels is None else with_labels(config, labels)


def with_labels(config: Any, labels: int) -> Any:
    """The config of a sequence classifier: its labels, and a token that pads where it names none, which its forward
    looks for in every batch (training puts the tokenizer's own there)."""
    config.num_labels = labels
    text = config.get_text_config(decoder=True)
    if getattr(text, "pad_token_id", None) is None:
        text.pad_token_id = config.pad_token_id = PAD
    return config


def model_class(raw: Mapping[str, Any], config: Any, labels: int | None = None) -> Any:
    """The class that is trained: the architecture that the config names, else the causal language model of its type;
    with `labels` its sequence classifier.

    Raises InputError where transformers has none.
    """
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

    if labels is not None:
        classifiers = AutoModelForSequenceClassification._model_mapping
        if type(config) not in classifiers:
            raise InputError(
                f"{config.model_type} has no sequence classifier in transformers {transformers.__version__}"
            )
        return classifiers[type(config)]
    for name in raw.get("architectures") or ():
        named = getattr(transformers, str(name), None)
        if isinstance(named, type) and issubclass(named, PreTrainedModel) and named.can_generate():  # type: ignore[attr-defined]
            return named
    mapping = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping:
        raise InputError(f"{config.model_type} has no causal language model in transformers")
    classes = mapping[type(config)]
    return classes[0] if isinstance(classes, (tuple, list)) else classes


def random_weights(
    raw: Mapping[str, Any], device: str, labels: int | None = None, *, tied_stored: bool = True
) -> dict[str, Any]:
    """Random tensors on the host in the shape of this model's checkpoint, of its sequence classifier with `labels`:
    see `weights.random_state_dict`."""
    import torch

    config = model_config(raw, labels)
    # A checkpoint is in bfloat16 even where the run loads it as float16: the loader converts, as it would a real one.
    # On the host nothing would be converted or copied, so there it is stored in a dtype that no run loads.
    stored = torch.float64 if device == "cpu" else torch.bfloat16
    wanted = model_class(raw, config, labels)
    return random_state_dict(wanted, config, torch.bfloat16, stored=stored, tied_stored=tied_stored)


def load_random(raw: Mapping[str, Any], run: RunConfig, device: str, weights: dict[str, Any]) -> Any:
    """The model with `weights` of `random_weights`, through the loader that real weights go through.

    Raises RefusedError for attention that the installed class lacks.
    """
    if trainer_named(run.trainer).patches_libraries:
        return unsloth.load_random(raw, run, device, weights)
    labels = labels_of(run)
    config = model_config(raw, labels)
    wanted = model_class(raw, config, labels)
    _check_experts(run)
    _check_attention(wanted, run)
    return wanted.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        device_map=_placement(run, device),
        trust_remote_code=False,
        **loading_options(run),
    )


def load_folder(
    folder: str | Path, raw: Mapping[str, Any], run: RunConfig, device: str, *, placed: Mapping[str, int] | None = None
) -> Any:
    """The model with the weights in `folder`, each module where `placed` says, else all on this process's card.

    Raises RefusedError for attention that the installed class lacks.
    """
    if trainer_named(run.trainer).patches_libraries:
        return unsloth.load_folder(folder, run, device)
    labels = labels_of(run)
    wanted = model_class(raw, model_config(raw, labels), labels)
    _check_experts(run)
    _check_attention(wanted, run)
    stored, options = bool(raw.get("quantization_config")), loading_options(run)
    if labels is not None:
        options["num_labels"] = labels
    if stored:
        options.pop("quantization_config", None)  # its own wins in any case, with a warning
    device_map = _placement(run, device) if placed is None else dict(placed)
    model = wanted.from_pretrained(str(folder), device_map=device_map, trust_remote_code=False, **options)
    if stored and run.quant in ("nf4", "fp4"):
        _compute_in(model, torch_dtype(compute_dtype(run)))
    return model


def _check_experts(run: RunConfig) -> None:
    if run.expert_quant == "nf4":
        raise RefusedError(
            "transformers loads fused experts in 16 bits, so a run with --expert-quant nf4 is planned and not trained"
            " here: `plan --export axolotl=FILE` writes it for axolotl, which stores them in NF4"
        )


def _check_attention(wanted: Any, run: RunConfig) -> None:
    if run.attention == "sdpa" and not wanted._supports_sdpa:
        from importlib import metadata

        raise RefusedError(
            f"{wanted.__name__} of the installed transformers {metadata.version('transformers')} has no sdpa attention:"
            " plan with --attention eager, or install a version that has it"
        )


def _compute_in(model: Any, dtype: Any) -> None:
    """A checkpoint that is quantised already brings its own compute dtype, which transformers prefers to the run's:
    it says how layers are multiplied and nothing of how they are stored, so the run's own holds."""
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype, module.compute_type_is_set = dtype, True


def vocabulary(model: Any) -> int:
    """Rows of the model's input embedding."""
    return int(base_of(model).get_input_embeddings().weight.shape[0])


def has_weights(folder: str | Path) -> bool:
    """Whether a model folder holds weights beside its config."""
    return any(Path(folder).glob("*.safetensors")) or any(Path(folder).glob("pytorch_model*.bin"))


def _placement(run: RunConfig, device: str) -> dict[str, Any]:
    """Where a process loads all of the model: its own card, or the host where shards are made of it there."""
    if device != "cuda" or run.load_on == "cpu":
        return {"": "cpu" if device == "cuda" else device}
    return {"": 0 if run.parallel is None else int(os.environ.get("LOCAL_RANK", 0))}


def base_of(model: Any) -> Any:
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_layers(model: Any) -> list[Any]:
    """The decoder layers in order: the longest module list of as many entries as the text config has layers.

    Empty where no list has that many.
    """
    from torch import nn

    base = base_of(model)
    count = getattr(base.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in base.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and not any(part in name for part in ("vision", "visual", "audio", "encoder"))
    ]
    return list(min(lists, key=lambda pair: pair[0].count("."))[1]) if lists else []
