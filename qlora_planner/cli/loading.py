"""Models for verbs: found or profiled, with a word on stderr while that takes time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from qlora_planner.cli.streams import patience
from qlora_planner.cli.values import Output
from qlora_planner.text import plain

if TYPE_CHECKING:
    from qlora_planner.spec.model import ModelProfile


def profile_for(model: str, output: Output) -> ModelProfile:
    """The profile of MODEL, built here if it has none and torch is installed.

    Raises InputError and MissingError as `qlora_planner.session.load_model` does.
    """
    from qlora_planner.session import load_model

    begun = time.monotonic()
    with patience(f"{plain(model)} is new here: looking it up and profiling it", output.quiet):
        profile = load_model(model, profiles=output.profiles, warn=output.warn)
    if profile.source == "built":
        output.warn(f"{profile.id}: profiled in {time.monotonic() - begun:.1f} s and kept")
    if profile.resolved_from is not None and profile.same_shape_as is None:
        output.warn(f"{plain(profile.resolved_from)}: taken as {profile.id}")
    if profile.same_shape_as is not None:
        output.warn(f"{profile.id}: same shapes as {profile.same_shape_as}, answered from its profile")
    if profile.note:
        output.warn(f"{profile.id}: {profile.note}")
    return profile
