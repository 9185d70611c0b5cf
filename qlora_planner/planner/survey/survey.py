"""survey: what fits on one card, over many models, each with its recommended recipe.

Its figures rank models: allocated bytes of a sweep times what segments usually take more. Where that is near the limit
the run is played, as `plan` plays the runs that it answers with. Of a run without a trace it says what `estimate` says:
nothing, but where weights and adapters alone are too large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qlora_planner.catalog.cuda import cublas_workspace_bytes
from qlora_planner.catalog.parallel import DDP, FSDP2
from qlora_planner.errors import InputError, MissingError
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.closed_form.components import component_sizes
from qlora_planner.memory.closed_form.estimate import phases_of
from qlora_planner.memory.closed_form.static_peaks import StaticPeaks, memory_terms, static_peaks_of
from qlora_planner.memory.options.resolve import Resolution, resolve
from qlora_planner.memory.records import Component, MemoryEstimate, Unmodelled
from qlora_planner.memory.sweep.polynomials import FixedBytes
from qlora_planner.memory.unmodelled.left_out import left_out, of_text_part
from qlora_planner.memory.weights.classifier import profile_for
from qlora_planner.planner.candidate_memory import AS_RANKED, CandidateMemory, Scale, candidate_memory_of
from qlora_planner.planner.neighbours import longest
from qlora_planner.planner.survey.played import PlayedRuns
from qlora_planner.planner.sweeps import PINNED_OVER_ALLOCATED, Sweep, fixed_of, largest_batch
from qlora_planner.record import record
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

if TYPE_CHECKING:
    from qlora_planner.planner.survey.index import IndexedStorage

_NO_TRACE = "no training step of this class is recorded here; `estimate` records one"


@record
class SurveyRow:
    """One model on the card. Unknown or not possible is `None`."""

    model_id: str
    family: str
    params: int
    verdict: str
    run: RunConfig
    longest_seq_len: int | None  # at batch 1
    largest_batch: int | None  # at the run's sequence length
    peak_bytes: int  # without a trace weights and adapters alone: at least so much
    headroom_bytes: int
    usable_bytes: int
    limiting: str
    shortfall_bytes: int | None
    note: str | None = None
    traced: bool = False  # whether peak_bytes is ranked by a trace
    recommended: Recommended | None = None  # None where nothing fits, or nothing was searched


@record
class Recommended:
    """The best run of a model on the card by a search over what was left open; ranked, not played.

    `options` is what to type. `tokens_per_s` is None on a card of unknown rates.
    """

    options: Mapping[str, Any]
    floor_bytes: int
    traced: bool
    tokens_per_s: float | None


@record
class Candidate:
    """A model with its static_peaks for one run: what a survey needs of it."""

    model_id: str
    family: str
    params: int
    max_seq_len: int | None
    resolution: Resolution
    ground: StaticPeaks
    sweep: Sweep | None = None
    fixed: FixedBytes | None = None
    scale: Scale = AS_RANKED  # what playing its run took over its rank, where that was done
    bases: tuple[IndexedStorage, ...] = ()  # of a model of the index: every way to store its weights
    text_part_of: str | None = None  # of a model of the index: the type of model that this is the text part of
    played: PlayedRuns | None = None  # what its usual runs need, where they were played beforehand


_USUAL_LENGTH = RunConfig().seq_len
# The estimate of a run of a model, by its name, where its trace ships; None elsewhere.
PlayedIn = Callable[[str, RunConfig], MemoryEstimate | None]
# Of runs that are ranked so far below what fits, none was seen to take more than that when it was played.
SURELY_WITHIN = 1.03


def _not_played(_model_id: str, _run: RunConfig) -> MemoryEstimate | None:
    return None


SweepOf = Callable[[ModelProfile], Sweep | None]


BasesOf = Callable[[ModelProfile], "tuple[IndexedStorage, ...]"]


def _no_bases(_profile: ModelProfile) -> tuple[IndexedStorage, ...]:
    return ()


def _no_sweep(_profile: ModelProfile) -> Sweep | None:
    return None


def candidate(profile: ModelProfile, run: RunConfig, gpu: GpuSpec, sweep: Sweep | None = None) -> Candidate:
    """Resolve `run` on a model and play its static peaks."""
    rows = profile.dims.get("position_rows")  # a model that looks positions up has no more than these
    resolution = resolve(profile, run.with_(seq_len=min(run.seq_len, int(rows or run.seq_len))), gpu)
    limit = profile.dims.get("max_position_embeddings")
    ground = static_peaks_of(profile, resolution, cublas_workspace_bytes(gpu.compute_capability))
    return Candidate(
        model_id=profile.id,
        family=profile.model_type,
        params=profile_for(profile, resolution.run).params,
        max_seq_len=int(limit) if limit else None,
        resolution=resolution,
        ground=ground,
        sweep=sweep,
        fixed=fixed_of(ground, resolution.run),
    )


def survey(
    profiles: Iterable[ModelProfile],
    budget: Budget,
    run: RunConfig | None = None,
    *,
    sweep_of: SweepOf = _no_sweep,
    storages_of: BasesOf = _no_bases,
    recommend: Callable[[Candidate], Recommended | None] = lambda _: None,
    played_of: PlayedIn = _not_played,
) -> list[SurveyRow]:
    """A row per model, largest first; a model that cannot take `run` at all has its reason as a note.

    `storages_of` gives the ways to store a model's weights among which `recommend` searches.

    `sweep_of` gives a model's traced moments, where they are kept.
    """
    wanted = run or RunConfig()
    rows = survey_rows(profiles, budget, wanted, sweep_of, storages_of, recommend, played_of)
    return sorted(rows, key=lambda row: (-row.params, row.model_id))


def survey_rows(
    profiles: Iterable[ModelProfile], budget: Budget, run: RunConfig, sweep_of: SweepOf, storages_of: BasesOf,
    recommend: Callable[[Candidate], Recommended | None], played_of: PlayedIn,
) -> Iterator[SurveyRow]:  # fmt: skip
    """The same rows as each is worked out, in the order of `profiles`."""
    budget = budget.beside_vllm(run)
    for profile in profiles:
        try:
            model = candidate(profile, run, budget.card, sweep_of(profile))
            row = judge(replace(model, bases=storages_of(profile)), budget, recommend, played_of)
            yield _qualified(_noted(row, run), left_out(profile, model.resolution.run))
        except (InputError, MissingError) as error:  # MissingError: what only PEFT could say of this model
            yield refused_row(profile, run, budget.usable_bytes, str(error))


def judge(
    model: Candidate,
    budget: Budget,
    recommend: Callable[[Candidate], Recommended | None] = lambda _: None,
    played_of: PlayedIn = _not_played,
) -> SurveyRow:
    """The row of one model within a budget; `recommend` searches for its best run.

    A rank that is near the limit may be on its wrong side: there the run is estimated by `played_of`. On several cards
    each holds the whole run and a copy of its gradients; of what no card holds so nobody can say.
    """
    if budget.world > 1:
        return _on_several(model, budget, recommend, played_of)
    return _judged(model, budget, recommend, played_of)


def _on_several(
    model: Candidate, budget: Budget, recommend: Callable[[Candidate], Recommended | None], played_of: PlayedIn
) -> SurveyRow:
    copied = model.ground.state.gradients
    row = _judged(model, budget.less(copied), recommend, played_of)
    run, peak, usable = row.run.with_(parallel=row.run.parallel or DDP), row.peak_bytes + copied, budget.usable_bytes
    row = replace(
        row, run=run, peak_bytes=peak, usable_bytes=usable, headroom_bytes=usable - peak,
        shortfall_bytes=max(0, peak - usable) or None,
    )  # fmt: skip
    if run.parallel != DDP or row.verdict == "does-not-fit":
        what = f"no card of {budget.world} holds all of it; what each holds of a share is not listed: plan the model"
        return _qualified(row, (Unmodelled(key=f"--parallel {FSDP2}", what=what),))
    return row


def _judged(
    model: Candidate, budget: Budget, recommend: Callable[[Candidate], Recommended | None], played_of: PlayedIn
) -> SurveyRow:
    run, usable = model.resolution.run, budget.usable_bytes
    seq_len = min(run.seq_len, model.max_seq_len or run.seq_len)
    run = run.with_(seq_len=seq_len)
    single, several = (candidate_memory_for(model, run, budget, padded=padded) for padded in (False, True))
    parts = memory_terms(model.ground, replace(model.resolution, run=run), budget.context)
    _, peak = phases_of(run, parts)
    sizes = component_sizes(run, parts, peak)
    limiting = max(Component, key=lambda part: sizes.get(part, 0))
    refused = [problem for problem in model.resolution.problems if problem.blocking]
    own = several if run.padding else single
    too_large = own.least_bytes > usable
    if too_large:  # no trace is read of what does not load
        own = replace(own, sweep=None)
    floors, traced = own.floors(np.array([run.batch_size], dtype=np.int64), np.array([seq_len], dtype=np.int64))
    floor = int(floors[0]) if traced[0] else own.least_bytes
    unknown = "does-not-fit" if too_large else "cannot-say"
    verdict = "will-not-run" if refused else own.verdict(floor, traced=True) if traced[0] else unknown
    limit, _ = own.largest_floors()
    if not refused and traced[0] and limit / SURELY_WITHIN < floor < limit * PINNED_OVER_ALLOCATED:
        played = played_of(model.model_id, run)
        if played is not None and played.verdict is not None:
            model = replace(model, scale=Scale.of(floor, True, played.floor_bytes))
            verdict, floor = played.verdict, played.floor_bytes
            single, several = (candidate_memory_for(model, run, budget, padded=padded) for padded in (False, True))
    fits = verdict == "fits"
    # What is known to fit, or not to, needs no trace of its lengths.
    longer = fits or run.batch_size > 1
    top = model.max_seq_len if longer else seq_len
    row = SurveyRow(
        model_id=model.model_id,
        family=model.family,
        params=model.params,
        verdict=verdict,
        run=run,
        longest_seq_len=longest(single, 1, top, traced_alone=True, least=seq_len if fits else 1) if traced[0] else None,
        largest_batch=largest_batch(single, several, seq_len, run.batch_size) if fits and traced[0] else None,
        peak_bytes=floor,
        headroom_bytes=usable - floor,
        usable_bytes=usable,
        limiting=limiting.value,
        shortfall_bytes=max(0, floor - usable) or None,
        note=refused[0].message if refused else _said(model.resolution),
        traced=bool(traced[0]),
        recommended=None if refused or not traced[0] else recommend(model),
    )
    row = _noted(row, model.resolution.run)
    if row.verdict == "cannot-say":
        return replace(row, note="; ".join(filter(None, (row.note, _NO_TRACE))))
    return _qualified(row, tuple(of_text_part(model.text_part_of)))


def _qualified(row: SurveyRow, things: tuple[Unmodelled, ...]) -> SurveyRow:
    """A row of which something is left out, without a verdict that this could change."""
    against = "down" if row.verdict == "does-not-fit" else "up"
    changing = [thing for thing in things if thing.direction in (against, "both")]
    if not changing or row.verdict == "will-not-run":
        return row
    note = "; ".join(f"{thing.key} is not modelled: {thing.what}" for thing in changing)
    return replace(
        row, verdict="cannot-say", note=note, recommended=None, longest_seq_len=None, largest_batch=None
    )  # fmt: skip


def _said(resolution: Resolution) -> str | None:
    """What of a run that works is not as it was asked for."""
    return next((problem.message for problem in resolution.problems if problem.code == "targets-unmatched"), None)


def _noted(row: SurveyRow, wanted: RunConfig) -> SurveyRow:
    """The row with a word where a model was not made for the length asked for; nobody asks for the usual one."""
    if row.note is not None or row.run.seq_len >= wanted.seq_len or wanted.seq_len == _USUAL_LENGTH:
        return row
    return replace(row, note=f"judged at {row.run.seq_len:,} tokens, all that it was made for")


def candidate_memory_for(model: Candidate, run: RunConfig, budget: Budget, *, padded: bool) -> CandidateMemory:
    """The memory of a candidate's run at any size, with and without padded rows where padding was left open."""
    if "padding" in model.resolution.why:
        run = run.with_(padding=padded and not run.packing)
    resolution = Resolution.resolved(run, model.resolution.stack)
    assert model.fixed is not None
    return candidate_memory_of(model.ground, resolution, budget, model.sweep, model.fixed, model.scale)


def refused_row(profile: ModelProfile, run: RunConfig, usable: int, why: str) -> SurveyRow:
    return SurveyRow(
        model_id=profile.id, family=profile.model_type, params=profile.params, verdict="will-not-run", run=run,
        longest_seq_len=None, largest_batch=None, peak_bytes=0, headroom_bytes=usable, usable_bytes=usable,
        limiting="", shortfall_bytes=None, note=why,
    )  # fmt: skip
