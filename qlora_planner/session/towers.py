"""Models with the tower that reads images: their profiles, and what is not answered of them yet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qlora_planner.catalog.images import picture_of
from qlora_planner.errors import InputError, MissingError
from qlora_planner.installing import install_packages
from qlora_planner.memory.records import Unmodelled
from qlora_planner.session import packages
from qlora_planner.session.models import as_installed, built_from, config_of, source_of
from qlora_planner.session.packages import Warn
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.locations import cache_dir, whole_dirs
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

if TYPE_CHECKING:
    from qlora_planner.exchange.parsed_config import Reading
    from qlora_planner.memory.records import MemoryEstimate
    from qlora_planner.planner.planner import Planner
    from qlora_planner.planner.records import Price
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.session.model_on_card import ModelOnCard
    from qlora_planner.sources.profile_cache import ProfileCache


NO_TOWER = "its tower is not profiled here yet: `qlora-plan estimate` with these options profiles and traces it"


def with_tower(
    profile: ModelProfile,
    run: RunConfig,
    *,
    profiles: str | os.PathLike[str] | None = None,
    warn: Warn = packages.silent,
    build: bool = True,
) -> ModelProfile:
    """The profile of the whole model where a run shows images and `profile` is of its text part: shipped, kept from
    before, or, with `build`, built now.

    Raises InputError for a model that takes no images, MissingError where it is not profiled with its tower and cannot
    be here.
    """
    if not run.shows_images or profile.tower is not None:
        return profile
    named = named_with_tower(profile, profiles)
    if named is not None:
        return named
    if profile.text_part_of is None:
        raise InputError(f"{profile.id} takes no images: leave out --image-size, --images and --image-tokens")
    whole = tower_at_hand(profile, profiles=profiles, warn=warn)
    if whole is not None:
        return whole
    if not build:
        raise MissingError(f"{profile.id}: {NO_TOWER}")
    missing = packages.missing_packages()
    if missing:
        raise MissingError(
            f"{profile.id} is profiled by its text part alone: `{install_packages(missing)}` profiles it with its"
            f" tower (missing here: {', '.join(missing)})"
        )
    built = built_from(config_of(profile, profiles), whole_model=True)
    _cache(warn).store(built)
    return _called(built, profile)


def named_with_tower(profile: ModelProfile, profiles: str | os.PathLike[str] | None = None) -> ModelProfile | None:
    """The shipped profile with its tower of a model that the catalogue has by its text alone (Gemma 3), by the config
    of all of it; None of any other, and of a config of the same shape, which may be of text alone."""
    if profile.text_part_of is not None or profile.source != "catalogue":
        return None
    catalogue, name = ModelCatalogue(whole_dirs(profiles)), profile.same_shape_as or profile.id
    if name not in catalogue.names():
        return None
    whole = replace(
        catalogue.load(name), id=profile.id, same_shape_as=profile.same_shape_as, resolved_from=profile.resolved_from
    )
    return as_installed(whole)


def tower_at_hand(
    profile: ModelProfile, *, profiles: str | os.PathLike[str] | None = None, warn: Warn = packages.silent
) -> ModelProfile | None:
    """The profile with its tower of a model that is profiled by its text part, where it ships or was kept."""
    from qlora_planner.sources.profile_cache import cache_key, installed_versions

    whole = _shipped_with_tower(profile, profiles)
    if whole is not None:
        return as_installed(_called(whole, profile))
    if packages.missing_packages():
        kept = _cache(warn).newest(profile.config_sha256)
    else:
        kept = _cache(warn).load(cache_key(profile.config_sha256, installed_versions()))
    return None if kept is None else _called(kept, profile)


def _cache(warn: Warn) -> ProfileCache:
    from qlora_planner.sources.profile_cache import ProfileCache

    return ProfileCache(cache_dir() / "whole", warn)


def _shipped_with_tower(profile: ModelProfile, profiles: str | os.PathLike[str] | None) -> ModelProfile | None:
    """The catalogue's, of a model whose tower is this one's too."""
    catalogue = ModelCatalogue(whole_dirs(profiles))
    base = profile.same_shape_sha256 or profile.config_sha256
    whole = catalogue.with_config(base)
    if whole is None or base == profile.config_sha256:
        return whole
    own, other = source_of(profile, profiles), source_of(replace(profile, config_sha256=base), profiles)
    # What shapes the text does not say that the towers are alike.
    key = "vision_config"
    alike = own is not None and other is not None and own.config.get(key) == other.config.get(key)
    return whole if alike else None


def _called(whole: ModelProfile, profile: ModelProfile) -> ModelProfile:
    """`whole` under the names that `profile` goes by."""
    return replace(
        whole, id=profile.id, config_sha256=profile.config_sha256, same_shape_as=profile.same_shape_as,
        same_shape_sha256=profile.same_shape_sha256, resolved_from=profile.resolved_from,
        checkpoint_quantization=profile.checkpoint_quantization,
    )  # fmt: skip


def traced_with_images(opened: ModelOnCard, run: RunConfig) -> tuple[Planner, MemoryEstimate]:
    """What estimates the runs around one with images, and its own estimate.

    Raises InputError for a run that the stack refuses, and for one whose trace is not at hand.
    """
    from qlora_planner.evidence.calibration import TRACED
    from qlora_planner.planner.planner import Planner, Request

    profile, request = opened.profile_for(run), Request(budget=opened.budget, pace_on=opened.pace_on)
    planner = Planner.of(profile, request, run, None, opened.tape, shipped_of=opened.shipped)
    here = planner.answer(run)
    refused = [problem.message for problem in here.problems if problem.blocking]
    if refused:
        raise InputError(refused[0])
    if here.method != TRACED:
        raise InputError(
            "prices and frontiers with images need a recorded training step (a trace) of each run: `qlora-plan plan`"
            " with these options records this run and those around it, which answer here from then on"
        )
    return planner, here


def prices_with_images(opened: ModelOnCard, run: RunConfig) -> list[Price]:
    """A row per knob that is worth a trace, by the traces that are kept and, where the session makes some, new ones.

    Raises InputError as `traced_with_images`.
    """
    from qlora_planner.planner.neighbours import prices
    from qlora_planner.planner.plan import played_by

    planner, here = traced_with_images(opened, run)
    return list(prices(planner.factory, here.run, opened.pace_on, played_of=played_by(planner, here.run)))


def without_tower(reading: Reading, opened: ModelOnCard) -> Reading:
    """A file as it was read, without its images where this model cannot be planned with them here, which is said."""
    run = reading.run
    if not run.shows_images:
        return reading
    try:
        profile = opened.profile_for(run)
        if opened.budget.world > 1:
            raise InputError("runs with images are planned on one card")
        picture_of(profile.model_type, profile.dims, run)
    except (InputError, MissingError) as error:
        what = f"rows may hold them, of which nothing is counted ({error})"
        left = Unmodelled(key="images", what=what, direction="up")
        text = run.with_(images=None, image_size=None)
        return replace(reading, run=text, unmodelled=(*reading.unmodelled, left))
    return reading


def check_images(card: PlannedCard | None, request: Mapping[str, Any]) -> None:
    """Raises InputError for what a plan with images does not take."""
    if card is not None and card.machine.world > 1:
        raise InputError("--gpu: runs with images are planned on one card; name one")
    for option in ("data", "compare"):
        if request.get(option):
            raise InputError(f"--{option}: not with images yet; plan by --seq-len, and ask `estimate` of each run")
