"""The best run of each model of the index on one card: the search of `plan`, on figures worked out beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from qlora_planner.evidence.calibration import TRACED
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.planner.candidate_memory import candidate_memory_of
from qlora_planner.planner.knobs import SOME_LAYERS
from qlora_planner.planner.objectives import OBJECTIVES
from qlora_planner.planner.search import OptionSet, option_set, rank
from qlora_planner.planner.search_space import EFFECTIVE_BATCH, LARGEST_BATCH, SearchSpace
from qlora_planner.planner.survey.index import IndexedStorage
from qlora_planner.planner.survey.played import EVERY, SEGMENTS, PlayedRuns, layers_checkpointed, options_of
from qlora_planner.planner.survey.survey import Candidate, Recommended
from qlora_planner.planner.sweeps import Room
from qlora_planner.record import replaced
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.roofline import Rates, SpeedModel, efficiency_of

_DEFAULT = RunConfig()
_BATCHES = tuple(size for size in range(1, LARGEST_BATCH + 1) if EFFECTIVE_BATCH % size == 0)
_SPACE = SearchSpace(options=(), batches=_BATCHES, ranks=(), effective_batch=EFFECTIVE_BATCH)
_KINDS = (_BATCHES[:1], _BATCHES[1:])  # one sequence a row, and several, which are padded


@dataclass(slots=True, kw_only=True)
class Recommender:
    """Searches for many models within one budget; `pace_on` has the rates that speeds are ranked by."""

    budget: Budget
    pace_on: GpuSpec

    def best(self, model: Candidate) -> Recommended | None:
        """The fastest run that fits at the length asked for; None where none does."""
        run = model.resolution.run
        open_run = _DEFAULT.with_(seq_len=min(run.seq_len, model.max_seq_len or run.seq_len))
        prepared = list(self._option_sets(model, open_run))
        if not prepared:
            return None
        choice = next(rank(prepared, open_run, _SPACE, OBJECTIVES["throughput"]).best())
        if not choice.fits:
            return None
        typed = choice.run.to_dict()
        return Recommended(
            options={
                name: value for name, value in typed.items() if value != getattr(_DEFAULT, name) and value != "nf4"
            },
            floor_bytes=choice.floor_bytes,
            traced=choice.traced,
            tokens_per_s=choice.pace if Rates.of(self.budget.card, run.compute_dtype) else None,
        )

    def _option_sets(self, model: Candidate, open_run: RunConfig) -> Iterator[tuple[OptionSet, list[int]]]:
        if model.played is not None and model.played.seq_len == open_run.seq_len:
            yield from self._played(model, model.played, open_run)
            return
        for base in model.bases:
            if not self._loads(base):
                continue
            room = Room(seq_len=open_run.seq_len)
            for every in (1, 0, *SOME_LAYERS):  # the ends first, between which the others lie
                options = {**base.options, **layers_checkpointed(every)}
                for sizes in _KINDS:
                    wanted = room.batches(options, open_run.rank, list(sizes))
                    if wanted:
                        prepared = self._option_set(model, base, open_run.with_(**options), every, padded=sizes[0] > 1)
                        room.add(options, open_run.rank, list(sizes), prepared.memory)
                        yield prepared, wanted

    def _played(
        self, model: Candidate, played: PlayedRuns, open_run: RunConfig
    ) -> Iterator[tuple[OptionSet, list[int]]]:
        """Of the usual runs those that fit; with expandable segments where one fits with them alone, since they change
        nothing else."""
        budget = self.budget
        resolved = budget.context_for(model.resolution.run)
        limit = budget.largest_floor(TRACED, resolved, budget.fits_at_most) - budget.context_for(open_run).total_bytes
        bases = {str(base.options["quant"]): base for base in model.bases if base.options.get("double_quant", True)}
        for storage, every in product(bases, EVERY):
            fitting: set[int] = set()
            for segments in SEGMENTS:
                key = storage, every, segments
                wanted = [size for size in played.fitting(key, limit) if size not in fitting]
                fitting.update(wanted)
                run = open_run.with_(**options_of(key))
                for sizes in ([size for size in wanted if size in kind] for kind in _KINDS):
                    if sizes:
                        options = self._option_set(model, bases[storage], run, every, padded=sizes[0] > 1)
                        yield replaced(options, played=played.row(key)), sizes

    def _loads(self, base: IndexedStorage) -> bool:
        """Whether the weights alone are no more than the card takes: else no run of theirs fits."""
        held = max(base.ground.load.allocated, base.ground.adapters.allocated)
        return held + self.budget.context.total_bytes <= self.budget.usable_bytes

    def _option_set(
        self, model: Candidate, base: IndexedStorage, open_run: RunConfig, every: int, *, padded: bool
    ) -> OptionSet:
        resolved = open_run.with_(**{**base.settled, "padding": padded})
        resolution = Resolution.resolved(resolved, model.resolution.stack)
        memory = candidate_memory_of(base.ground, resolution, self.budget, model.sweep, base.fixed, model.scale)
        rates = Rates.of(self.pace_on, resolved.compute_dtype)
        assert rates is not None, "the ranking card has rates"
        traits, basis = efficiency_of(self.pace_on, self.budget.calibration)
        work = base.work(every, padding=padded)
        return option_set(open_run, memory, SpeedModel(work=work, rates=rates, traits=traits, basis=basis))
