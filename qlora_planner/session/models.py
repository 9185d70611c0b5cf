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
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.locations import cache_dir, configs_dirs, models_dirs
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
    if isinstance(found, str):
        if build != "always":
            return catalogue.load(found)
        found = _from_hub(found, catalogue)
    return _profile_of(found, text, catalogue, build, warn)


def _find(text: str, catalogue: ModelCatalogue, warn: Warn) -> str | RawConfig:
    """The catalogue id that `text` names, else the config it leads to."""
    from qlora_planner.sources import configs

    if configs.written_as_path(text):
        return configs.read_config(text)
    exists = _exists(text)
    model_id = catalogue.resolve(text)
    if model_id is not None:
        if exists:
            warn(f"{plain(text)}: taken as the catalogue's {model_id}; write ./{plain(text)} for the file or folder")
        return model_id
    if exists:
        return configs.read_config(text)
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
    from qlora_planner.sources.hub import fetch_config

    try:
        return fetch_config(repo_id, nearest=catalogue.nearest(repo_id))
    except PlannerError as error:
        # `models/llama` with a folder called models is as likely a path that was mistyped.
        folder = repo_id.partition("/")[0]
        if "/" in repo_id and _exists(folder):
            raise type(error)(f"{error}; in the folder {folder} there is no such file either") from None
        raise


def _profile_of(raw: RawConfig, text: str, catalogue: ModelCatalogue, build: Build, warn: Warn) -> ModelProfile:
    """The profile of a config: the catalogue's for the same config, a cached one, or a new one."""
    from qlora_planner.sources.profile_cache import ProfileCache, cache_key, installed_versions
    from qlora_planner.sources.tape_cache import ConfigCache

    ConfigCache(cache_dir() / "configs").store(raw.sha256, raw.config)
    cache = ProfileCache(cache_dir() / "profiles", warn)
    missing = packages.missing_packages()
    if build != "always":
        known = catalogue.with_config(raw.sha256)
        if known is None:
            key = cache_key(raw.sha256, installed_versions())
            known = cache.newest(raw.sha256) if missing else cache.load(key)
        if known is not None:
            return known if known.source == "catalogue" else replace(known, id=raw.id)
    if build == "never" or missing:
        raise UnprofiledError(_not_profiled(text, missing))
    profile = _build(raw)
    cache.store(profile)
    return profile


def profile_of(raw: RawConfig, *, build: Build = "auto", warn: Warn = _python_warning) -> ModelProfile:
    """The profile of a config that is at hand; raises as `load_model` does."""
    return _profile_of(raw, raw.id, ModelCatalogue(models_dirs()), build, warn)


def _not_profiled(text: str, missing: Sequence[str]) -> str:
    import shlex

    shown = plain(text)
    where = f" after `{install_packages(missing)}`" if missing else ""
    lacking = f" (missing here: {', '.join(missing)})" if missing else ""
    return f"{shown} is not profiled; run `qlora-plan profile {shlex.quote(shown)}`{where}{lacking}"


def _build(raw: RawConfig) -> ModelProfile:
    check_endpoint()  # transformers imports the Hub library, which breaks on some
    try:
        from qlora_planner.profiling.build import build_profile
    except (ImportError, OSError) as error:  # OSError: a shared library of torch that cannot be loaded
        raise MissingError(
            f"{plain(raw.id)} cannot be profiled: {plain(error)}; `qlora-plan doctor` says more"
        ) from None
    return build_profile(raw)


def with_targets(
    profile: ModelProfile, run: RunConfig, *, profiles: str | os.PathLike[str] | None = None
) -> ModelProfile:
    """The profile with the adapters of `run.target_modules`, asked of PEFT where that is installed.

    A layer that is named by its number stands for all: see `memory.unmodelled.left_out`.
    Raises InputError when no module matches, RefusedError in PEFT's words when it refuses one.
    """
    from qlora_planner.memory.weights.targets import WHOLE_SETS, targets_of

    wanted = run.target_modules
    known = wanted in WHOLE_SETS or wanted in profile.adapters
    if (
        known
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
    found = source_of(profile, profiles)
    if found is None:
        raise MissingError(f"{profile.id}: the config that it was profiled from is not at hand; name its config.json")
    return found


def source_of(profile: ModelProfile, profiles: str | os.PathLike[str] | None) -> RawConfig | None:
    """The config that a profile was built from: the catalogue's, or one kept when it was built."""
    from qlora_planner.sources.configs import RawConfig, read_config
    from qlora_planner.sources.tape_cache import ConfigCache

    for folder in configs_dirs(profiles):
        path = folder / (profile.id.replace("/", "__") + ".json")
        if path.is_file():
            found = read_config(path)
            if found.sha256 == profile.config_sha256:
                return found
    kept = ConfigCache(cache_dir() / "configs").load(profile.config_sha256)
    if kept is None:
        return None
    return RawConfig(id=profile.id, config=kept, sha256=profile.config_sha256, origin="cache")
