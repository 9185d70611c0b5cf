"""Build the user's real model class on the meta device and put bitsandbytes modules where loading would."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
import transformers
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel, initialization
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import HfQuantizer

from qlora_planner.errors import InputError, MissingError, PlannerError
from qlora_planner.text import quoted
from qlora_planner.train.model import model_class, with_labels

PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "peft", "trl")
# Fields that say how a checkpoint was stored or which remote code made it, not what the model is.
_NOT_ARCHITECTURE = ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "quantization_config")


def installed_versions() -> dict[str, str]:
    """Versions of the packages that a profile's facts depend on; one that is not installed is left out."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence advice that transformers logs while a config is read; errors still come through."""
    log = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(log)


def make_config(raw: Mapping[str, Any], location: str) -> Any:
    """transformers' config object of a `config.json` as parsed.

    Raises MissingError for a model type that the installed transformers does not have (remote code is never run)
    and InputError for fields that its config class refuses.
    """
    fields = {key: value for key, value in raw.items() if key not in _NOT_ARCHITECTURE}
    model_type = fields.pop("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        extra = " (its repository brings its own code, which is not run)" if raw.get("auto_map") else ""
        raise MissingError(
            f"{location}: model_type {quoted(model_type)} is not in transformers {transformers.__version__}{extra};"
            " a newer transformers may have it"
        )
    try:
        with quiet_transformers():
            return AutoConfig.for_model(model_type, **fields)
    except Exception as error:  # config classes raise what they like on bad fields; the cause is passed on
        raise InputError(f"{location}: {model_type} config refused: {_first_line(error)}") from error


def trained_class(
    raw: Mapping[str, Any], config: Any, location: str, labels: int | None = None
) -> type[PreTrainedModel]:
    """The class that a trainer loads: with `labels` the sequence classifier.

    Raises InputError naming `location` for a config that has none.
    """
    try:
        cls: type[PreTrainedModel] = model_class(raw, config, labels)
        return cls
    except InputError as error:
        raise InputError(f"{location}: {error}") from None


def build_on_meta(
    raw: Mapping[str, Any], location: str, dtype: torch.dtype = torch.bfloat16, labels: int | None = None
) -> tuple[PreTrainedModel, dict[str, torch.dtype]]:
    """The model without storage, tied, and the dtype that each module name pattern is loaded in instead of `dtype`;
    with `labels` its sequence classifier.

    Buffers are on the meta device too: some classes compute large ones, which would take gigabytes and minutes.
    """
    config = make_config(raw, location)
    if labels is not None:
        config = with_labels(config, labels)
    wanted = trained_class(raw, config, location, labels)
    try:
        with init_empty_weights(include_buffers=True), quiet_transformers(), initialization.no_tie_weights():
            model = wanted._from_config(config, dtype=dtype)
    except PlannerError:
        raise
    except Exception as error:  # any class's constructor may fail on inconsistent sizes; the cause is passed on
        raise InputError(f"{location}: {wanted.__name__} cannot be built from it: {_first_line(error)}") from error
    remember_skipped(model, _spared(raw))
    model.tie_weights()
    return model, dict(model._get_dtype_plan(dtype))


def remember_skipped(model: PreTrainedModel, spared: list[str] | None = None) -> None:
    """Ask transformers' rule while nothing is tied yet, as loading does: it spares the last parameter's module.

    `spared` are the modules that a checkpoint which is quantised already left alone; they take that rule's place.
    """
    model._left_alone = HfQuantizer.get_modules_to_not_convert(model, spared, model._keep_in_fp32_modules)


def _spared(raw: Mapping[str, Any]) -> list[str] | None:
    stored = raw.get("quantization_config")
    names = stored.get("llm_int8_skip_modules") if isinstance(stored, Mapping) else None
    return [str(name) for name in names] if isinstance(names, list) else None


def skipped_modules(model: PreTrainedModel) -> list[str]:
    """Modules that the bitsandbytes quantizers leave alone, by transformers' own rule."""
    names: list[str] = model._left_alone
    return names


def quantize_on_meta(model: PreTrainedModel, quant: str = "nf4", double_quant: bool = True) -> PreTrainedModel:
    """Apply transformers' own bitsandbytes replacement, the function that `from_pretrained` calls."""
    if quant == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quant,
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    with init_empty_weights(include_buffers=True), quiet_transformers():
        model = replace_with_bnb_linear(
            model, modules_to_not_convert=skipped_modules(model), quantization_config=config, pre_quantized=False
        )
    model.is_loaded_in_4bit = quant != "int8"
    model.is_loaded_in_8bit = quant == "int8"
    return model


def decoder_list(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of decoder layers and its name, e.g. `model.layers`.

    Raises InputError when no module list has as many entries as the config has layers.
    """
    text = model.config.get_text_config(decoder=True)
    layers = getattr(text, "num_hidden_layers", None)
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    deep = [pair for pair in lists if len(pair[1]) == layers]
    # A model that is one encoder, made causal by its mask, has its layers in it.
    matching = [pair for pair in deep if not _inside_tower(pair[0])] or deep
    if not matching:
        raise InputError(f"{type(model).__name__}: found no list of {layers} decoder layers")
    return min(matching, key=lambda pair: pair[0].count("."))


def _inside_tower(name: str) -> bool:
    return any(part in name for part in ("vision", "visual", "audio", "encoder"))


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
