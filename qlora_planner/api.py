"""The Python entry points: a model, a card, the memory of a run, the plan. Everything heavy is imported when needed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qlora_planner.errors import InputError, MissingError, PlannerError
from qlora_planner.profile.faults import plain, quoted
from qlora_planner.profile.records import ModelProfile
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.locations import cache_dir, gpus_dirs, models_dirs

if TYPE_CHECKING:
    from qlora_planner.hardware import GpuSpec
    from qlora_planner.sources.configs import RawConfig

Warn = Callable[[str], None]
Build = Literal["auto", "never", "always"]

# What building a profile imports.
TRAIN_PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "peft")


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

    cache = ProfileCache(cache_dir() / "profiles", warn)
    missing = _missing_packages()
    if build != "always":
        known = catalogue.with_config(raw.sha256)
        if known is None:
            key = cache_key(raw.sha256, installed_versions())
            known = cache.newest(raw.sha256) if missing else cache.load(key)
        if known is not None:
            return known if known.source == "catalogue" else replace(known, id=raw.id)
    if build == "never" or missing:
        raise MissingError(_not_profiled(text, missing))
    profile = _build(raw)
    cache.store(profile)
    return profile


def _missing_packages() -> list[str]:
    from importlib.util import find_spec

    return [package for package in TRAIN_PACKAGES if find_spec(package) is None]


def _not_profiled(text: str, missing: Sequence[str]) -> str:
    import shlex

    shown = plain(text)
    where = " where `pip install 'qlora-planner[train]'` is installed" if missing else ""
    lacking = f" (missing here: {', '.join(missing)})" if missing else ""
    return f"{shown} is not profiled; run `qlora-plan profile {shlex.quote(shown)}`{where}{lacking}"


def _build(raw: RawConfig) -> ModelProfile:
    try:
        from qlora_planner.profiling.build import build_profile
    except (ImportError, OSError) as error:  # OSError: a shared library of torch that cannot be loaded
        raise MissingError(
            f"{plain(raw.id)} cannot be profiled: {plain(error)}; `qlora-plan doctor` says more"
        ) from None
    return build_profile(raw)


def load_gpu(text: str, *, profiles: str | os.PathLike[str] | None = None) -> GpuSpec:
    """The card of `text`: a size such as 24GB or 24564MiB, a catalogue name, or `local` for the one in this machine.

    Raises InputError for what is none of these (with the nearest names), MissingError for `local` without a card.
    """
    if text.strip().lower() == "local":
        from qlora_planner.measure.nvml import local_gpu

        return local_gpu().spec
    from qlora_planner.hardware import GpuCatalogue, parse_gpu

    return parse_gpu(text, GpuCatalogue(gpus_dirs(profiles)))


def estimate(*args: Any, **options: Any) -> Any:
    """The memory of one run: see `qlora_planner.memory.estimate.estimate`."""
    from qlora_planner.memory.estimate import estimate as answer

    return answer(*args, **options)


def plan(*args: Any, **options: Any) -> Any:
    """The recommended run for a model and a card: see `qlora_planner.planner.plan.plan`."""
    from qlora_planner.planner.plan import plan as answer

    return answer(*args, **options)
