"""Profiles of configs whose model is not built: the catalogue's of the same shape, or what the law of a class gives."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from qlora_planner.errors import InputError
from qlora_planner.sources.catalogue import ModelCatalogue, file_name
from qlora_planner.sources.locations import configs_dirs, families_dirs, fields_dirs, laws_dirs, models_dirs
from qlora_planner.sources.text_part import light_text_part
from qlora_planner.spec.model import ModelProfile
from qlora_planner.text import plain

if TYPE_CHECKING:
    from qlora_planner.sources.configs import RawConfig


def by_text(
    raw: RawConfig, catalogue: ModelCatalogue, profiles: str | os.PathLike[str] | None = None
) -> tuple[ModelProfile, None] | tuple[None, str]:
    """The profile of a config of text, or of the text part of one: the catalogue's of the same shape, else what the law
    of its class gives, else why neither. Raises InputError as `by_law` does."""
    part, whole = light_text_part(raw, laws_dirs(profiles))
    profile = with_shape(part, catalogue, profiles)
    if profile is not None:
        return replace(profile, text_part_of=whole), None
    profile, why = by_law(part, profiles)
    if profile is not None:
        return replace(profile, text_part_of=whole), None
    return None, f"{plain(why or '')}{'' if whole is None else f' (the text part of {plain(whole)})'}"


def with_shape(
    raw: RawConfig, catalogue: ModelCatalogue, profiles: str | os.PathLike[str] | None = None
) -> ModelProfile | None:
    """The facts of the catalogue model that `raw` equals in all that shapes it, under its own name; None where it
    equals none.

    Of several such models the one whose config agrees in most other fields too.
    """
    from qlora_planner.memory.options.stored_checkpoint import stored_quantization
    from qlora_planner.sources.configs import read_config
    from qlora_planner.sources.same_shape import same_shape

    folders = configs_dirs(profiles)

    def agreeing(model_id: str) -> int:
        paths = (folder / file_name(model_id) for folder in folders)
        own = next((read_config(path).config for path in paths if path.is_file()), {})
        return sum(1 for name, value in own.items() if name in raw.config and raw.config[name] == value)

    names = set(catalogue.names())
    equal = [match for match in same_shape(raw.config, fields_dirs(profiles)) if match.model_id in names]
    if not equal:
        return None
    chosen = max(equal, key=lambda match: agreeing(match.model_id)) if len(equal) > 1 else equal[0]
    base = catalogue.load(chosen.model_id)
    if not (_names_class(raw, base) and _spares_the_usual(raw, base)):
        return None
    dims = dict(base.dims)
    if chosen.max_position_embeddings is not None:
        dims["max_position_embeddings"] = chosen.max_position_embeddings
    return replace(
        base,
        id=raw.id,
        config_sha256=raw.sha256,
        dims=dims,
        checkpoint_quantization=stored_quantization(raw.config),
        tied_stored=None,
        same_shape_as=base.id,
        same_shape_sha256=base.config_sha256,
    )


def _names_class(raw: RawConfig, base: ModelProfile) -> bool:
    """Whether the config asks for the class of `base`, by name or by leaving it to its model type."""
    named = raw.config.get("architectures")
    return not named or named[0] == base.class_name


def _spares_the_usual(raw: RawConfig, base: ModelProfile) -> bool:
    """Whether a checkpoint that bitsandbytes stored left the same modules alone as loading does by itself."""
    stored = raw.config.get("quantization_config")
    spared = stored.get("llm_int8_skip_modules") if isinstance(stored, dict) else None
    return not spared or (spared == ["lm_head"] and all(tensor.reason != "protected" for tensor in base.tensors))


def by_law(
    raw: RawConfig, profiles: str | os.PathLike[str] | None = None
) -> tuple[ModelProfile, None] | tuple[None, str]:
    """The profile that the law of its class gives `raw`, else why not. Raises InputError for a config on which the
    class itself breaks."""
    from qlora_planner.sources.families import known_configs
    from qlora_planner.sources.laws.lookup import Refused, profile_by_law
    from qlora_planner.sources.laws.releases import why_unknown

    laws, fields = laws_dirs(profiles), fields_dirs(profiles)
    profile = profile_by_law(raw, laws, fields, known_configs(families_dirs(profiles)))
    if profile is None:
        return None, why_unknown(raw.config.get("model_type"), laws)
    if isinstance(profile, Refused):
        if profile.breaks:
            raise InputError(f"{plain(raw.id)}: {plain(profile.reason)}")
        return None, profile.reason
    profile = _proved_same(profile, ModelCatalogue(models_dirs(profiles)))
    if not _spares_the_usual(raw, profile):
        return None, "its checkpoint was quantised with other modules left alone than loading leaves alone"
    from qlora_planner.sources.laws.stored import disagreement, weights_folders

    if (other := disagreement(profile, *weights_folders(raw))) is not None:
        return None, other
    return profile, None


def _proved_same(profile: ModelProfile, catalogue: ModelCatalogue) -> ModelProfile:
    """The profile by a law, said to have a catalogue model's shape only where it has its layers and tensors too."""
    if profile.same_shape_as is None:
        return profile
    base = catalogue.load(profile.same_shape_as) if profile.same_shape_as in set(catalogue.names()) else None
    same = base is not None and (base.layer_order, base.tensors, base.adapters) == (
        profile.layer_order,
        profile.tensors,
        profile.adapters,
    )
    return profile if same else replace(profile, same_shape_as=None, same_shape_sha256=None)
