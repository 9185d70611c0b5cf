"""A model with the tower that reads images: its class, its tower, and what of its config images are counted by."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from qlora_planner.errors import InputError
from qlora_planner.profiling.meta_model import make_config

# Numbers by which processors and towers count, under the names of config.json; those of the tower's part are kept with
# `vision_` before them.
_OF_WHOLE = (
    "mm_tokens_per_image", "image_seq_length", "spatial_merge_size", "scale_factor", "downsample_ratio",
)  # fmt: skip
_OF_TOWER = (
    "image_size", "patch_size", "spatial_merge_size", "temporal_patch_size", "in_channels", "hidden_size", "depth",
    "num_hidden_layers", "pixel_shuffle_ratio", "max_num_tiles",
)  # fmt: skip


def whole_config(raw: Mapping[str, Any], location: str) -> Mapping[str, Any]:
    """The config of the whole model, naming the class that reads images.

    Raises InputError for a model of text alone and for one that transformers has no such class for; as `make_config`.
    """
    config = make_config(deepcopy(dict(raw)), location)
    classes = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    if not sees(config):
        raise InputError(f"{location}: {config.model_type} takes no images: leave out --image-size and --images")
    if classes is None:
        raise InputError(f"{location}: transformers has no class that reads images for {config.model_type}")
    chosen = classes[0] if isinstance(classes, (list, tuple)) else classes
    return {**raw, "architectures": [chosen.__name__]}


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


def image_dims(config: Any) -> dict[str, int | float | None]:
    """What `catalog.images` counts an image by."""
    numbers = {name: getattr(config, name, None) for name in _OF_WHOLE}
    numbers |= {f"vision_{name}": getattr(config.vision_config, name, None) for name in _OF_TOWER}
    # Some write the side of a square for both of them.
    numbers = {name: value[0] if isinstance(value, (list, tuple)) else value for name, value in numbers.items()}
    return {
        name: int(value) if isinstance(value, int) else value
        for name, value in numbers.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
