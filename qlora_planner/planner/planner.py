"""The planner at work: what is asked of it, candidates ranked, and the best one settled by its own estimate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qlora_planner.errors import InputError
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.memory.allocator.expandable import is_expandable
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.estimate import estimate_within, with_interval
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.options.stored_checkpoint import stored_problem
from qlora_planner.memory.parallel.choice import for_cards
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.memory.replay.simulate import remembered_run
from qlora_planner.planner.candidate_memory import CandidateFactory
from qlora_planner.planner.knobs import generates, of_length
from qlora_planner.planner.neighbours import longest_played
from qlora_planner.planner.objectives import Objective
from qlora_planner.planner.search import Choice, Ranking, Rows, search
from qlora_planner.planner.search_space import EFFECTIVE_BATCH, search_space
from qlora_planner.planner.sweeps import Sweep
from qlora_planner.record import record, replaced
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Tape
from qlora_planner.speed.several import speed_within

if TYPE_CHECKING:  # most plans are made without a dataset
    from qlora_planner.data.batches.summary import DataSummary

TapeOf = Callable[[RunConfig], Tape | None]
# The trace of a run on a card, of those that ship.
ShippedOf = Callable[[RunConfig, GpuSpec], Tape | None]
# Sequences of traces of a run at other widths, as far as they are at hand and made of the same pieces.
OrdersOf = Callable[[RunConfig, Sequence[Sequence[int]]], Sequence[Sequence[Tape]]]
# Finalists that are estimated on their own before the search is content with fewer tokens.
MOST_TRIES = 6


def no_tape(_run: RunConfig) -> Tape | None:
    """For runs of which no trace is at hand."""
    return None


def none_shipped(_run: RunConfig, _gpu: GpuSpec) -> Tape | None:
    """For a model of which no trace ships."""
    return None


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
    """One model within one budget for one request; `looked_at` counts candidates.

    `tape_of` may trace a run, where `traces` is on; `shipped_of` knows what ships alone.
    """

    profile: ModelProfile
    request: Request
    run: RunConfig
    factory: CandidateFactory
    tape_of: TapeOf
    orders_of: OrdersOf = no_orders
    shipped_of: ShippedOf = none_shipped
    traces: bool = True
    looked_at: int = 0
    _answers: dict[str, MemoryEstimate] = field(default_factory=dict)
    _rough: dict[str, MemoryEstimate] = field(default_factory=dict)
    _finished: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls,
        profile: ModelProfile,
        request: Request,
        run: RunConfig,
        sweep: Sweep | None,
        tape_of: TapeOf,
        orders_of: OrdersOf = no_orders,
        shipped_of: ShippedOf = none_shipped,
        traces: bool = True,
        answers: dict[str, MemoryEstimate] | None = None,
    ) -> Planner:
        """`answers` holds what was estimated before of this model within this budget, and gets what is now."""
        request = replaced(request, budget=request.budget.beside_vllm(run))
        return cls(
            profile=profile, request=request, run=run, factory=CandidateFactory.of(profile, request.budget, sweep),
            tape_of=tape_of, orders_of=orders_of, shipped_of=shipped_of, traces=traces,
            _answers={} if answers is None else answers,
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
        if objective.lengths and all(
            name in fixed and getattr(run, name) is not None for name in ("prompt_len", "completion_len")
        ):
            raise InputError(
                f"--prompt-len and --completion-len say how long a sequence is: leave one of them out for"
                f" --objective {objective.name}"
            )
        space = search_space(
            self.profile, run, fixed, effective_batch=effective_batch or self._effective_batch(fixed),
            packed=data is not None, int8=objective.name == "quality", offloading=objective.lengths,
            some_layers=not objective.lengths and self.budget.world == 1, whole=whole,
        )  # fmt: skip
        if objective.ranks and "rank" not in fixed:
            space = replaced(space, ranks=objective.ranks)
        limits = [limit for limit in (self.model_limit, longest) if limit is not None]
        ranking = search(
            self.factory, run, space, objective, pace_on=self.pace_on,
            model_limit=min(limits, default=None), rows=None if data is None else rows_of(data),
            untraced=self.traces,
        )  # fmt: skip
        self.looked_at += ranking.count
        return ranking

    def _effective_batch(self, fixed: frozenset[str]) -> int | None:
        """Sequences that one card takes of an optimizer step; None where what is fixed says so."""
        sequences, world = self.request.effective_batch, self.budget.world
        if world == 1 or (sequences is None and fixed & {"batch_size", "grad_accum"}):
            return sequences
        return max(1, (sequences or EFFECTIVE_BATCH) // world)

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
        return self.first_that_fits(ranking, self.answer)

    def first_that_fits(
        self, ranking: Ranking, answer_of: Callable[[RunConfig], MemoryEstimate | None]
    ) -> tuple[Choice, MemoryEstimate] | None:
        """The best choice that fits by `answer_of`, which is None for what it cannot say; None where none tried does.

        Where lengths are ranked, shorter ones of a choice come before the next.
        """
        off = 1.0  # how much more a choice took than it was ranked at, at the most
        tries = 0
        for choice in ranking.best():
            if not choice.fits or tries >= MOST_TRIES:
                return None
            if ranking.lengths and choice.traced and self.shipped_of is not none_shipped:
                tries += 1
                if (longest := self._longest(choice, answer_of)) is not None:
                    return longest
                continue
            if choice.floor_bytes * off > self.budget.usable_bytes:
                continue
            answer = answer_of(choice.run)
            if answer is None:
                continue
            tries += 1
            if answer.verdict == "fits":
                return choice, answer
            off = max(off, answer.floor_bytes / choice.floor_bytes)
        return None

    def _longest(
        self, choice: Choice, answer_of: Callable[[RunConfig], MemoryEstimate | None]
    ) -> tuple[Choice, MemoryEstimate] | None:
        """The same options at the longest sequence that fits, as the frontier has it."""
        run = choice.run
        memory = self.factory.make(resolve(self.profile, run, self.request.gpu))
        seq_len, _ = longest_played(memory, run.batch_size, run.seq_len, self.roughly)
        if seq_len is None:
            return None
        run = of_length(run, seq_len, memory.run.prompt_len if generates(run) else None)
        answer = answer_of(run)
        if answer is None or answer.verdict != "fits":
            return None
        return replaced(choice, run=run, floor_bytes=memory.at(run.batch_size, run.seq_len)), answer

    def reserved(self, run: RunConfig) -> int | None:
        """The most that torch reserves for a run, played as `answer` does; None where it is not traced."""
        tape = self.tape_of(run)
        if tape is None:
            return None
        orders = self._orders(run, tape)
        resolution = resolve(self.profile, for_cards(run, self.budget.world, self.budget.nodes)[0], self.request.gpu)
        workspace_bytes, world = self.budget.workspace_bytes, self.budget.world
        return max(
            remembered_run(self.profile, resolution, tape, workspace_bytes, before=before, world=world).reserved
            for before in orders or ((),)
        )

    def answer(self, run: RunConfig) -> MemoryEstimate:
        """One run's own estimate; with a dataset, after batches of the widths that may come before its widest.

        What its figures leave out is for the end: a search would find nothing that fits.
        """
        key = self._key(run)
        if key not in self._answers:
            tape = self.tape_of(run)
            self._answers[key] = self._estimated(run, tape, self._orders(run, tape))
        if key not in self._finished:
            self._answers[key] = self._finish(self._answers[key])
            self._finished.add(key)
        return self._answers[key]

    def _finish(self, answer: MemoryEstimate) -> MemoryEstimate:
        """With what is shown of a run and decides nothing."""
        answer = with_interval(answer, self.budget)
        if answer.run.shows_images:  # the work of towers is not counted
            return answer
        return replaced(answer, speed=speed_within(self.budget, self.profile, answer.run, answer.stack))

    def played(self, run: RunConfig) -> MemoryEstimate | None:
        """The estimate of a run alone where its trace ships, whatever the data, without its speed and interval; None
        elsewhere.

        Raises InputError for modules that are not there.
        """
        return self._alone(run, refines=True)

    def roughly(self, run: RunConfig) -> MemoryEstimate | None:
        """The same from one playing where that gives a floor which is never less: what fits by it fits.

        What expandable segments can give back is not known from one.
        """
        return self._alone(run, refines=is_expandable(run.alloc_conf))

    def _alone(self, run: RunConfig, *, refines: bool) -> MemoryEstimate | None:
        if self.shipped_of is none_shipped:
            return None
        key = self._key(run) if self.request.data is None else f"alone {self._key(run)}"
        answer = self._answers.get(key)
        if answer is not None and answer.method == TRACED:
            return answer
        if not refines and key in self._rough:
            return self._rough[key]
        tape = self.shipped_of(run, self.request.gpu)
        if tape is None:
            return None
        kept = self._answers if refines else self._rough
        kept[key] = self._estimated(run, tape, (), refines=refines)
        return kept[key]

    def played_on(self, run: RunConfig, card: GpuSpec) -> MemoryEstimate | None:
        """The estimate of a run on all of another card; None where no trace of it ships."""
        tape = self.shipped_of(run, card)
        if tape is None:
            return None
        return estimate_within(self.budget.on(card), self.profile, run, tape=tape, complete=False)

    def _key(self, run: RunConfig) -> str:
        """The same for a run as it is typed and as it is resolved."""
        return repr(resolve(self.profile, run, self.request.gpu).run)

    def _estimated(
        self, run: RunConfig, tape: Tape | None, orders: Sequence[Sequence[Tape]], *, refines: bool = True
    ) -> MemoryEstimate:
        return estimate_within(
            self.budget, self.profile, run, tape=tape, orders=orders, complete=False, refines=refines
        )

    def _orders(self, run: RunConfig, tape: Tape | None) -> Sequence[Sequence[Tape]]:
        """With a dataset, traces of batches that may come before the widest of a run that has a `tape`."""
        data = self.request.data
        if data is None or tape is None:
            return ()
        from qlora_planner.data.batches.widths import widths_before

        return self.orders_of(run, widths_before(data, run.batch_size, run.seq_len, run.packing))


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
