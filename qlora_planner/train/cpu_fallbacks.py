"""Auto options of a run that nobody resolved against a profile, by the same rules, from the model's class alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.memory.options.resolve import resolve
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.images import image_dims
from qlora_planner.train.model import model_class, model_config


def with_cpu_fallbacks(run: RunConfig, raw: Mapping[str, Any], versions: Mapping[str, str]) -> RunConfig:
    """`run` without auto options; one that is resolved already comes back as it is.

    What PEFT refuses on this model is not known here: it will say so itself. Raises InputError for options that
    contradict each other and for a config that describes no model.
    """
    config = model_config(raw)
    wanted = model_class(raw, config)
    profile = ModelProfile(
        id=str(raw.get("model_type")),
        model_type=str(raw.get("model_type")),
        class_name=wanted.__name__,
        config_sha256="",
        params=1,
        versions=dict(versions),
        dims=image_dims(config) if run.shows_images else {},
        tower="" if run.shows_images else None,  # which module it is nobody asks here
        supports={"eager": True, "sdpa": bool(wanted._supports_sdpa), "flash_attention_2": True},
        layer_kinds=(),
        layer_order=(),
        tensors=(),
        adapters={},
    )
    return resolve(profile, run).run
