"""What fits on a card over the whole catalogue: a row per model, as they are worked out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from qlora_planner.errors import MissingError
from qlora_planner.session.surveying.images import image_rows
from qlora_planner.session.traces import sweep_for
from qlora_planner.sources.locations import models_dirs

if TYPE_CHECKING:
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.planner.survey.survey import Candidate, Recommended, SurveyRow
    from qlora_planner.session.workbench import Workbench
    from qlora_planner.spec.run import RunConfig

# Of 4-bit weights with what stays in 16 bits, roughly: it decides an order and nothing else.
_BYTES_PER_PARAM = 0.7


def stream_rows(bench: Workbench, run: RunConfig, *, recommend: bool = True) -> Iterator[SurveyRow]:
    """A row per model as it is worked out: what is likely to fit comes first, the largest of it before the rest.

    Without `recommend` no best run is looked for, which takes a fraction of the time. Raises MissingError for an empty
    catalogue.
    """
    from qlora_planner.catalog.cuda import cublas_workspace_bytes
    from qlora_planner.planner.survey.index import serves, storages_of
    from qlora_planner.planner.survey.recommend import Recommender
    from qlora_planner.planner.survey.survey import judge, survey_rows
    from qlora_planner.session.surveying.indexed import indexed_candidates
    from qlora_planner.sources.catalogue import ModelCatalogue
    from qlora_planner.sources.played import played_runs

    if run.shows_images:
        yield from image_rows(bench, run)
        return
    session, gpu = bench.session, bench.gpu
    indexed, profiles = indexed_candidates(models_dirs(session.profiles), gpu, run, session.tell)
    if not indexed and not profiles:
        raise MissingError("no model profile is found; reinstall qlora-planner, or name a folder with --profiles DIR")
    budget = bench.budget
    recommender = Recommender(budget=budget, pace_on=session.ranking_card(gpu))
    usable = budget.usable_bytes

    def best(model: Candidate) -> Recommended | None:
        if not recommend:
            return None
        if budget.world == 1:
            return recommender.best(model)
        # Each card holds a copy of the gradients beside the run; speeds are not ranked over cards.
        best_run = replace(recommender, budget=budget.less(model.ground.state.gradients)).best(model)
        return best_run and replace(best_run, tokens_per_s=None)

    whole = {profile.id: profile for profile in profiles}

    def played(model_id: str, chosen: RunConfig) -> MemoryEstimate | None:
        profile = whole.get(model_id) or ModelCatalogue(models_dirs(session.profiles)).load(model_id)
        return session.open(profile, bench.card).played(chosen)

    for candidate in sorted(indexed, key=lambda model: (model.params * _BYTES_PER_PARAM > usable, -model.params)):
        yield judge(candidate, budget, best, played)
    workspace = cublas_workspace_bytes(gpu.compute_capability)

    def best_of_profile(model: Candidate) -> Recommended | None:
        """As the index has it: with what was played of the model, in the dtype that it was played in."""
        runs = played_runs(whole[model.model_id], workspace, models_dirs(session.profiles))
        return best(model if runs is None or gpu.bf16 is False else replace(model, played=runs))

    yield from survey_rows(
        sorted(profiles, key=lambda model: (model.params * _BYTES_PER_PARAM > usable, -model.params)),
        budget,
        run,
        lambda profile: sweep_for(profile, profiles=session.profiles, named=run.stack),
        # With options of the user's nothing is searched: the run is theirs.
        (lambda profile: storages_of(profile, gpu)) if serves(run) else (lambda _: ()),
        best_of_profile,
        played,
    )
