"""From what a user types to a model's profile and its config."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qlora_planner.errors import InputError, MissingError, PlannerError, UnprofiledError
from qlora_planner.hub_address import check_endpoint
from qlora_planner.installing import install_packages
from qlora_planner.session import packages
from qlora_planner.session.packages import Warn
from qlora_planner.sources.catalogue import ModelCatalogue, file_name
from qlora_planner.sources.locations import cache_dir, configs_dirs, models_dirs
from qlora_planner.sources.names import Named, Names
from qlora_planner.sources.words import name_in
from qlora_planner.spec.model import ModelProfile
from qlora_planner.text import plain, quoted

if TYPE_CHECKING:
    from qlora_planner.sources.configs import RawConfig
    from qlora_planner.spec.run import RunConfig

Build = Literal["auto", "never", "always"]


def _python_warning(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def load_model(
    text: str,
    *,
    profiles: str | os.PathLike[str] | None = None,
    build: Build = "auto",
    warn: Warn = _python_warning,
) -> ModelProfile:
    """The profile of `text`: a catalogue name, a config.json or model folder, or a Hub id.

    `build` says what to do for a model without a profile: "auto" builds it where the training packages are installed,
    "never" refuses, "always" builds even if there is a profile. A built profile is cached. `warn` gets one line for
    each oddity that does not stop the answer.
    Raises InputError for text that means nothing or several things and for configs that describe no model,
    MissingError for a model that is not profiled where it cannot be built, and for a Hub that cannot be asked.
    """
    text = text.strip()
    if not text:
        raise InputError("MODEL is empty: give a catalogue name, a Hub id, a model folder or a config.json")
    catalogue = ModelCatalogue(models_dirs(profiles))
    found = _find(text, catalogue, warn)
    if isinstance(found, Named):
        if build != "always":
            return as_installed(_named(found, text, catalogue))
        found = _from_hub(found.id, catalogue)
    from qlora_planner.sources.laws.stored import as_stored

    return as_stored(_profile_of(found, text, catalogue, build, warn, profiles), found)


def _named(found: Named, text: str, catalogue: ModelCatalogue) -> ModelProfile:
    """The catalogue's profile under the id that was meant, saying what was typed and whose facts these are."""
    known = catalogue.load(found.base)
    typed = None if text == found.id else text
    if found.id == found.base:
        return replace(known, resolved_from=typed)
    dims, stored = dict(known.dims), known.checkpoint_quantization
    if found.max_position_embeddings is not None:
        dims["max_position_embeddings"] = found.max_position_embeddings
    if found.stored is not None:
        stored = None if found.stored == "none" else found.stored
    return replace(
        known,
        id=found.id,
        dims=dims,
        checkpoint_quantization=stored,
        same_shape_as=found.base,
        same_shape_sha256=known.config_sha256,
        resolved_from=text,
    )


def as_installed(profile: ModelProfile) -> ModelProfile:
    """A shipped profile for the libraries that are installed here, where training could run with them and somebody
    looked at their versions; without the packages it is left at its own versions."""
    if packages.missing_packages():
        return profile
    from qlora_planner.catalog.stack import stack_of
    from qlora_planner.sources.profile_cache import installed_versions

    return replace(profile, installed=stack_of(profile.versions, installed_versions()).versions)


def _find(text: str, catalogue: ModelCatalogue, warn: Warn) -> Named | RawConfig:
    """The model that `text` names, else the config it leads to."""
    from qlora_planner.sources import configs

    if configs.written_as_path(text):
        return configs.read_config(text)
    exists = _exists(text)
    # A word that a catalogue name only ends in (`tiny`) means the folder that is called so.
    model_id = catalogue.whole_name(text) if exists else catalogue.resolve(text)
    if model_id is not None:
        if exists:
            warn(f"{plain(text)}: taken as the catalogue's {model_id}; write ./{plain(text)} for the file or folder")
        return Named(id=model_id, base=model_id)
    if exists:
        return configs.read_config(text)
    text = name_in(text)
    if (model_id := catalogue.resolve(text)) is not None:
        return Named(id=model_id, base=model_id)
    if (named := Names(catalogue).find(text)) is not None:
        return named
    if not configs.is_hub_id(text):
        raise InputError(
            f"{quoted(text)} is no catalogue name, no Hub id, and no such file or folder{catalogue.suggestion(text)}"
        )
    return _from_hub(text, catalogue)


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # a name too long for the disk, a null character
        return False


def _from_hub(repo_id: str, catalogue: ModelCatalogue) -> RawConfig:
    from qlora_planner.sources.on_hub.hub import fetch_config

    try:
        return fetch_config(repo_id, nearest=catalogue.nearest(repo_id))
    except PlannerError as error:
        # `models/llama` with a folder called models is as likely a path that was mistyped.
        folder = repo_id.partition("/")[0]
        if "/" in repo_id and _exists(folder):
            raise type(error)(f"{error}; in the folder {folder} there is no such file either") from None
        raise


def _profile_of(
    raw: RawConfig,
    text: str,
    catalogue: ModelCatalogue,
    build: Build,
    warn: Warn,
    profiles: str | os.PathLike[str] | None = None,
) -> ModelProfile:
    """The profile of a config: the catalogue's for the same config or shape, a cached one, or a new one."""
    from qlora_planner.sources.profile_cache import ProfileCache, cache_key, installed_versions
    from qlora_planner.sources.traces.tape_cache import ConfigCache

    ConfigCache(cache_dir() / "configs").store(raw.sha256, raw.config)
    cache = ProfileCache(cache_dir() / "profiles", warn)
    missing, why = packages.missing_packages(), None
    if build != "always":
        known = catalogue.with_config(raw.sha256)
        if known is None:
            from qlora_planner.sources.unbuilt import by_text

            known, why = by_text(raw, catalogue, profiles)
        if known is None:
            key = cache_key(raw.sha256, installed_versions())
            known = cache.newest(raw.sha256) if missing else cache.load(key)
        if known is not None:
            if known.source == "cache":  # whose facts are of the libraries here
                return replace(known, id=raw.id)
            return as_installed(known if known.source == "catalogue" else replace(known, id=raw.id))
    if build == "never" or missing:
        raise UnprofiledError(_not_profiled(text, missing, why))
    profile = built_from(raw)
    cache.store(profile)
    return profile


def profile_of(raw: RawConfig, *, build: Build = "auto", warn: Warn = _python_warning) -> ModelProfile:
    """The profile of a config that is at hand; raises as `load_model` does."""
    from qlora_planner.sources.laws.stored import as_stored

    return as_stored(_profile_of(raw, raw.id, ModelCatalogue(models_dirs()), build, warn), raw)


def _not_profiled(text: str, missing: Sequence[str], why: str | None = None) -> str:
    import shlex

    from qlora_planner.sources.laws.releases import OF_NO_RELEASE

    shown = plain(text)
    if why is not None and why.endswith(OF_NO_RELEASE):
        return f"{shown} is not profiled: {plain(why)}"
    after = f" after `{install_packages(missing)}`" if missing else ""
    lacking = f" (missing here: {', '.join(missing)})" if missing else ""
    unlike = f": {plain(why)}" if why else ""
    return f"{shown} is not profiled{unlike}; run `qlora-plan profile {shlex.quote(shown)}`{after}{lacking}"


def built_from(raw: RawConfig, whole_model: bool = False) -> ModelProfile:
    """A new profile. Raises MissingError where the training packages cannot be imported, and as `build_profile`."""
    check_endpoint()  # transformers imports the Hub library, which breaks on some
    try:
        from qlora_planner.profiling.build import build_profile
    except (ImportError, OSError) as error:  # OSError: a shared library of torch that cannot be loaded
        raise MissingError(
            f"{plain(raw.id)} cannot be profiled: {plain(error)}; `qlora-plan doctor` says more"
        ) from None
    return build_profile(raw, whole_model=whole_model)


def with_targets(
    profile: ModelProfile, run: RunConfig, *, profiles: str | os.PathLike[str] | None = None
) -> ModelProfile:
    """The profile with the adapters of `run.target_modules`, asked of PEFT where that is installed.

    A layer that is named by its number stands for all: see `memory.unmodelled.left_out`.
    Raises InputError when no module matches, RefusedError in PEFT's words when it refuses one.
    """
    from qlora_planner.memory.weights.targets import WHOLE_SETS, targets_of

    wanted = run.target_modules
    is_profiled = wanted in WHOLE_SETS or wanted in profile.adapters
    if (
        is_profiled
        or run.method == "full"
        or packages.missing_packages()
        or os.environ.get(packages.TRACE_VARIABLE) == "never"
    ):
        return profile
    source = source_of(profile, profiles)
    if source is None:
        return profile
    from qlora_planner.profiling.build import profile_target

    assert wanted is not None
    names = ",".join(targets_of(profile, wanted).on_every_layer)
    return replace(profile, adapters={**profile.adapters, wanted: profile_target(source, names, profile)})


def config_of(profile: ModelProfile, profiles: str | os.PathLike[str] | None = None) -> RawConfig:
    """The config that a profile was built from; raises MissingError where it is not at hand."""
    config = source_of(profile, profiles)
    if config is None:
        raise MissingError(f"{profile.id}: the config that it was profiled from is not at hand; name its config.json")
    return config


def source_of(profile: ModelProfile, profiles: str | os.PathLike[str] | None) -> RawConfig | None:
    """The config that a profile was built from: the catalogue's, or one kept when it was built."""
    from qlora_planner.sources.configs import RawConfig, read_config
    from qlora_planner.sources.traces.tape_cache import ConfigCache

    for folder in (part for each in configs_dirs(profiles) for part in (each, each / "whole")):
        path = folder / file_name(profile.same_shape_as or profile.id)
        if path.is_file():
            config = read_config(path)
            if config.sha256 == profile.config_sha256:
                return replace(config, id=profile.id)
    kept = ConfigCache(cache_dir() / "configs").load(profile.config_sha256)
    if kept is None:
        return None
    return RawConfig(id=profile.id, config=kept, sha256=profile.config_sha256, origin="cache")
