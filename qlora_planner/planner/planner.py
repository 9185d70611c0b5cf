"""The planner at work: what is asked of it, candidates ranked, and the best one settled by its own estimate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qlora_planner.memory.budget import Budget
from qlora_planner.memory.estimate import estimate_within
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.options.stored_checkpoint import stored_problem
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.memory.replay.simulate import simulate_run
from qlora_planner.planner.candidate_memory import CandidateFactory
from qlora_planner.planner.objectives import Objective
from qlora_planner.planner.search import Choice, Ranking, Rows, search
from qlora_planner.planner.search_space import search_space
from qlora_planner.planner.sweeps import Sweep
from qlora_planner.record import record
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Tape
from qlora_planner.speed.roofline import speed_of

if TYPE_CHECKING:  # most plans are made without a dataset
    from qlora_planner.data.batches.summary import DataSummary

TapeOf = Callable[[RunConfig], Tape | None]
# Sequences of traces of a run at other widths, as far as they are at hand and made of the same pieces.
OrdersOf = Callable[[RunConfig, Sequence[Sequence[int]]], Sequence[Sequence[Tape]]]
# Finalists that are estimated on their own before the search is content with fewer tokens.
MOST_TRIES = 6


def no_orders(_run: RunConfig, _widths: Sequence[Sequence[int]]) -> Sequence[Sequence[Tape]]:
    """For runs of which only their own width is known."""
    return ()


@record
class Request:
    """What is asked of a plan.

    `fixed` names the options of `run` that must stay; None: those that differ from their defaults. `effective_batch`
    is the sequences per optimizer step. `pace_on` is a card with rates to rank speeds by, where the `budget`'s own
    card is but a size. With `adjust` what is fixed may be changed where nothing fits so.
    """

    budget: Budget
    run: RunConfig = field(default_factory=RunConfig)
    fixed: Collection[str] | None = None
    objective: str = "throughput"
    effective_batch: int | None = None
    pace_on: GpuSpec | None = None
    data: DataSummary | None = None
    cards: Sequence[GpuSpec] = ()  # from which the smallest that would do is named
    compare: Sequence[GpuSpec] = ()
    adjust: bool = False

    @property
    def gpu(self) -> GpuSpec:
        """The card that is planned for."""
        return self.budget.card


@dataclass(slots=True, kw_only=True)
class Planner:
    """One model within one budget for one request; `looked_at` counts candidates."""

    profile: ModelProfile
    request: Request
    run: RunConfig
    factory: CandidateFactory
    tape_of: TapeOf
    orders_of: OrdersOf = no_orders
    looked_at: int = 0

    @classmethod
    def of(
        cls,
        profile: ModelProfile,
        request: Request,
        run: RunConfig,
        sweep: Sweep | None,
        tape_of: TapeOf,
        orders_of: OrdersOf = no_orders,
    ) -> Planner:
        return cls(
            profile=profile, request=request, run=run, factory=CandidateFactory.of(profile, request.budget, sweep),
            tape_of=tape_of, orders_of=orders_of,
        )  # fmt: skip

    @property
    def budget(self) -> Budget:
        return self.request.budget

    @property
    def pace_on(self) -> GpuSpec:
        return self.request.pace_on or self.request.gpu

    @property
    def model_limit(self) -> int | None:
        limit = self.profile.dims.get("position_rows") or self.profile.dims.get("max_position_embeddings")
        return int(limit) if limit else None

    def rank(
        self,
        run: RunConfig,
        fixed: frozenset[str],
        objective: Objective,
        *,
        effective_batch: int | None = None,
        longest: int | None = None,
        whole: bool = True,
    ) -> Ranking:
        """Every candidate around `run`; sequences up to `longest` where lengths are chosen."""
        data = self.request.data
        space = search_space(
            self.profile, run, fixed, effective_batch=effective_batch or self.request.effective_batch,
            packed=data is not None, int8=objective.name == "quality", offloading=objective.lengths, whole=whole,
        )  # fmt: skip
        if objective.ranks and "rank" not in fixed:
            space = replace(space, ranks=objective.ranks)
        limits = [limit for limit in (self.model_limit, longest) if limit is not None]
        ranking = search(
            self.factory, run, space, objective, pace_on=self.pace_on,
            model_limit=min(limits, default=None), rows=None if data is None else rows_of(data),
        )  # fmt: skip
        self.looked_at += ranking.count
        return ranking

    def settle(self, ranking: Ranking, *, bold: bool = False) -> tuple[Choice, MemoryEstimate] | None:
        """The best choice that fits when it is estimated on its own; None where none of those tried does.

        A rank is off by some percent: with `bold`, faster traced runs that it puts just above the card are played too.
        Weights that are stored in a way which no run can take make the best by rank the answer, with what it is refused
        for: it is what would be run on a copy of the model.
        """
        best = next(ranking.best(), None)
        if best is not None and stored_problem(self.profile, best.run) is not None:
            return best, self.answer(best.run)
        for choice in ranking.nearly(self.budget.usable_bytes) if bold else ():
            answer = self.answer(choice.run)
            if answer.verdict == "fits":
                return choice, answer
        off = 1.0  # how much more a choice took than it was ranked at, at the most
        tries = 0
        for choice in ranking.best():
            if not choice.fits or tries >= MOST_TRIES:
                return None
            if choice.floor_bytes * off > self.budget.usable_bytes:
                continue
            answer = self.answer(choice.run)
            tries += 1
            if answer.verdict == "fits":
                return choice, answer
            off = max(off, answer.floor_bytes / choice.floor_bytes)
        return None

    def reserved(self, run: RunConfig) -> int | None:
        """The most that torch reserves for a run, played as `answer` does; None where it is not traced."""
        tape, orders = self._traces(run)
        if tape is None:
            return None
        resolution = resolve(self.profile, run, self.request.gpu)
        workspace_bytes = self.budget.workspace_bytes
        return max(
            simulate_run(self.profile, resolution, tape, workspace_bytes, before=before).reserved
            for before in orders or ((),)
        )

    def answer(self, run: RunConfig) -> MemoryEstimate:
        """One run's own estimate; with a dataset, after batches of the widths that may come before its widest.

        What its figures leave out is for the end: a search would find nothing that fits.
        """
        budget = self.budget
        tape, orders = self._traces(run)
        answer = estimate_within(budget, self.profile, run, tape=tape, orders=orders, complete=False)
        speed = speed_of(self.profile, answer.run, budget.gpu, budget.calibration, answer.stack)
        return replace(answer, speed=speed)

    def _traces(self, run: RunConfig) -> tuple[Tape | None, Sequence[Sequence[Tape]]]:
        """The run's trace and, with a dataset, those of batches that may come before its widest."""
        tape, data = self.tape_of(run), self.request.data
        if data is None or tape is None:
            return tape, ()
        from qlora_planner.data.batches.widths import widths_before

        return tape, self.orders_of(run, widths_before(data, run.batch_size, run.seq_len, run.packing))


def rows_of(data: DataSummary) -> Rows:
    """How long a dataset's rows are in batches: packed rows are full, shuffled ones are padded to the longest."""
    from qlora_planner.data.batches.padding import padded_by_random

    lengths_of: dict[tuple[int, int], tuple[float, float]] = {}

    def sizes(batch: int, seq: int, packing: bool) -> tuple[float, float]:
        if packing:
            return float(seq), float(seq)
        if (batch, seq) not in lengths_of:
            lengths = data.lengths.clip(max=seq)
            padded = padded_by_random(lengths, min(batch, len(lengths))) / len(lengths)
            lengths_of[batch, seq] = padded, float(lengths.mean())
        return lengths_of[batch, seq]

    return sizes
