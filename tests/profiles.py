"""Profiles of any config, without asking what the libraries refuse: four traced steps, most of what building takes."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from qlora_planner.profiling.build import ConfigSource, build_profile
from qlora_planner.profiling.refusals import Prober
from qlora_planner.spec.model import ModelProfile


class Unasked(Prober):
    """Knows of no refusal and asks for none."""

    def refusal(self, raw: Mapping[str, Any], key: tuple[str, ...], **options: Any) -> str | None:
        return None


def unprobed(source: ConfigSource) -> ModelProfile:
    """What `build_profile` gives for a model that runs with every option."""
    return build_profile(source, prober=Unasked())


def toy_profile(config: Mapping[str, Any]) -> ModelProfile:
    """The same from a config's fields alone."""
    source: Any = SimpleNamespace(config=config, id="toy", sha256="")
    return unprobed(source)
