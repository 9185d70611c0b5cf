"""A model with the tower that reads images: its class and its tower."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from qlora_planner.errors import InputError
from qlora_planner.profiling.meta_model import make_config

_MARKS = ("image", "video", "vision")


def whole_config(raw: Mapping[str, Any], location: str) -> Mapping[str, Any]:
    """The config of the whole model, naming the class that reads images and the tokens that mark these, which published
    configs may leave to their class.

    Raises InputError for a model of text alone and for one that transformers has no such class for; as `make_config`.
    """
    config = make_config(deepcopy(dict(raw)), location)
    classes = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    if not sees(config):
        raise InputError(f"{location}: {config.model_type} takes no images: leave out --image-size and --images")
    if classes is None:
        raise InputError(f"{location}: transformers has no class that reads images for {config.model_type}")
    chosen = classes[0] if isinstance(classes, (list, tuple)) else classes
    marks = {
        name: value
        for name, value in vars(config).items()
        if name.startswith(_MARKS) and name.endswith(("_token_id", "_token_index")) and type(value) is int
    }
    return {**raw, **marks, "architectures": [chosen.__name__]}


def sees(config: Any) -> bool:
    """Whether a config has a part for images."""
    return any("vision" in name for name in getattr(type(config), "sub_configs", {}))


def tower_of(model: PreTrainedModel) -> str:
    """The name of the module that reads images, as `model.visual`. Raises InputError where none is."""
    config: Any = model.config.vision_config
    for name, module in model.named_modules():
        if name and isinstance(module, nn.Module) and getattr(module, "config", None) is config:
            return name
    raise InputError(f"{type(model).__name__}: found no module that reads images")
