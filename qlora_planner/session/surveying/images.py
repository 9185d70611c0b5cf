"""The survey of a run with images: models that read them alone, each with its tower."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from qlora_planner.errors import InputError, MissingError, RefusedError
from qlora_planner.session.surveying.indexed import indexed_candidates
from qlora_planner.session.towers import NO_TOWER, named_with_tower, tower_at_hand
from qlora_planner.session.traces import tape_for
from qlora_planner.sources.locations import models_dirs

if TYPE_CHECKING:
    from qlora_planner.planner.survey.survey import SurveyRow
    from qlora_planner.session.workbench import Workbench
    from qlora_planner.spec.model import ModelProfile
    from qlora_planner.spec.run import RunConfig
    from qlora_planner.spec.trace import Tape


def image_rows(bench: Workbench, run: RunConfig) -> Iterator[SurveyRow]:
    """A row per model with a tower, the largest first. Nothing is profiled or traced for it: what ships and what is
    kept from before answers, and others are listed with the reason why nobody says. Raises InputError for several
    cards."""
    from qlora_planner.planner.survey.images import row_with_images, row_without_tower

    session, budget = bench.session, bench.budget
    if budget.world > 1:
        raise InputError("--gpu: runs with images are planned on one card; name one")
    _, profiles = indexed_candidates(models_dirs(session.profiles), bench.gpu, run, session.tell)
    for profile in sorted(profiles, key=lambda model: (-model.params, model.id)):
        whole = named_with_tower(profile, session.profiles)
        if whole is None and profile.text_part_of is None:
            continue
        whole = whole or tower_at_hand(profile, profiles=session.profiles, warn=session.tell)
        if whole is None:
            yield row_without_tower(profile, run, budget, NO_TOWER)
        else:
            yield row_with_images(whole, run, budget, _tape(bench, whole, run))


def _tape(bench: Workbench, profile: ModelProfile, run: RunConfig) -> Tape | None:
    """The trace that is at hand; a run that cannot be has none, and its row says why."""
    try:
        return tape_for(profile, run, bench.gpu, profiles=bench.session.profiles, make=False)
    except (InputError, MissingError, RefusedError):
        return None
