"""The search: every option set of a space over every size, as arrays; best first by an objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.errors import InputError, NothingRunsError
from qlora_planner.memory.options.resolve import Resolution, resolve
from qlora_planner.memory.records import STORED_QUANTIZED
from qlora_planner.memory.sweep.tasks import is_task
from qlora_planner.planner.candidate_memory import CandidateFactory, CandidateMemory, Ints
from qlora_planner.planner.knobs import generates, of_length
from qlora_planner.planner.neighbours import longest
from qlora_planner.planner.objectives import NEAR, Columns, Objective
from qlora_planner.planner.search_space import EFFECTIVE_BATCH, WEIGHT_STORAGES, SearchSpace
from qlora_planner.planner.survey.played import BATCHES, key_of
from qlora_planner.planner.sweeps import NEARLY, SEQ_STEP, Room
from qlora_planner.record import record, replaced
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.roofline import SpeedModel

_DEFAULT = RunConfig()
# Runs a little above the card that are played, since a rank is off by some percent.
MOST_NEARLY = 2
# Of a dataset's rows in a batch, by batch, sequence and packing: tokens computed on a row, padding with them, and the
# row's own, both in the mean.
Rows = Callable[[int, int, bool], tuple[float, float]]


@record
class Choice:
    """One candidate that was ranked. `pace` is in tokens per second on the ranking card, padding left out."""

    run: RunConfig
    floor_bytes: int
    fits: bool
    traced: bool
    pace: float
    step_s: float
    quality: int  # of the stored weights: 2 for 16-bit, 1 for 8-bit, 0 for 4-bit


@record
class OptionSet:
    """One option set at one rank and one kind of batch."""

    typed: RunConfig  # as it would be typed: autos open, so that the answer says why they became what they are
    memory: CandidateMemory
    speed: SpeedModel
    quality: int
    plain: int  # options as in the default recipe, of those that are a matter of habit
    played: Mapping[int, int | None] | None = None  # the floor of each batch, where these were played beforehand

    @property
    def run(self) -> RunConfig:
        """Resolved; batch and sequence stand for any."""
        return self.memory.run


# Between runs of about the same speed these stay what they are in the default recipe.
_HABITS = ("optimizer", "alloc_conf", "double_quant")


@record
class Ranking:
    """Every candidate, with `order` best first among those that fit, then the others by how little they need."""

    sets: list[OptionSet]
    which: NDArray[np.int64]
    accumulation: NDArray[np.int64]
    columns: Columns
    fits: NDArray[np.bool_]
    traced: NDArray[np.bool_]
    step_s: NDArray[np.float64]
    order: NDArray[np.int64]
    lengths: bool = False  # whether every option set is ranked at the longest sequence that fits

    @property
    def count(self) -> int:
        """Candidates looked at."""
        return len(self.which)

    def best(self) -> Iterator[Choice]:
        """Candidates in order."""
        for at in self.order.tolist():
            yield self.choice(at)

    def least(self) -> Choice:
        """The candidate that needs least, of those with a trace where there are any: formulas rank too low at times."""
        floor = self.columns.floor
        if self.traced.any():
            floor = np.where(self.traced, floor, np.iinfo(floor.dtype).max)
        return self.choice(int(floor.argmin()))

    def nearly(self, usable_bytes: int) -> Iterator[Choice]:
        """The traced runs nearest above what fits that are faster than all that do, a few, the smallest first."""
        columns = self.columns
        best = columns.pace[self.fits].max() if self.fits.any() else 0.0
        near = ~self.fits & self.traced & (columns.floor <= NEARLY * usable_bytes) & (columns.pace > (1 + NEAR) * best)
        candidates = np.flatnonzero(near)
        for at in candidates[np.argsort(columns.floor[candidates], kind="stable")][:MOST_NEARLY].tolist():
            yield self.choice(at)

    def choice(self, at: int) -> Choice:
        """One candidate by its number."""
        columns, options = self.columns, self.sets[int(self.which[at])]
        run, seq_len = options.typed, int(columns.seq[at])
        run = run.with_(batch_size=int(columns.batch[at]), grad_accum=int(self.accumulation[at]))
        if seq_len != options.run.seq_len:
            run = of_length(run, seq_len, options.run.prompt_len if generates(run) else None)
        elif not generates(run):
            run = run.with_(seq_len=seq_len)
        return Choice(
            run=run, floor_bytes=int(columns.floor[at]), fits=bool(self.fits[at]), traced=bool(self.traced[at]),
            pace=float(columns.pace[at]), step_s=float(self.step_s[at]), quality=int(columns.quality[at]),
        )  # fmt: skip


def search(
    factory: CandidateFactory,
    run: RunConfig,
    space: SearchSpace,
    objective: Objective,
    *,
    pace_on: GpuSpec,
    model_limit: int | None = None,
    rows: Rows | None = None,
    untraced: bool = True,
) -> Ranking:
    """Rank every candidate of `space` around `run` on the card of `factory`; see `rank`.

    `pace_on` is the card whose rates rank speeds: the card itself, or one that stands in where it is but a size.
    Raises InputError when target modules match nothing, NothingRunsError with the first reason when the stack refuses
    every candidate.
    """
    prepared = _option_sets(factory, run, space, objective, pace_on)
    return rank(prepared, run, space, objective, model_limit=model_limit, rows=rows, untraced=untraced)


def rank(
    prepared: Iterable[tuple[OptionSet, list[int]]],
    run: RunConfig,
    space: SearchSpace,
    objective: Objective,
    *,
    model_limit: int | None = None,
    rows: Rows | None = None,
    untraced: bool = True,
) -> Ranking:
    """Rank option sets, each with the batches that it holds for. Raises InputError when there is none.

    With `untraced` off, closed forms say what fits only where they must: where of all that is traced nothing does; of a
    task or a run with images, for which no closed forms stand in, where nothing is traced.
    """
    sets: list[OptionSet] = []
    parts: list[tuple[NDArray[Any], ...]] = []
    for options, batches in prepared:
        accumulated = space.accumulation(batches[0], options.run) > 1
        lengths = _lengths(options, run, objective, batches[0], accumulated, model_limit, untraced=untraced)
        batch, seq = np.repeat(np.array(batches, dtype=np.int64), len(lengths)), np.tile(lengths, len(batches))
        parts.append(_evaluate(len(sets), options, space, batch, seq, rows))
        sets.append(options)
    if not sets:
        raise InputError(
            "no combination of the options left open runs with these library versions; leave more of them open"
        )
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    *_, traced, step_s = columns
    if not untraced and (is_task(run) or run.shows_images) and traced.any():
        columns = [column[traced] for column in columns]
    which, accumulation, pace, floor, batch, seq, rank, quality, fits, traced, step_s = columns
    if not untraced and (fits & traced).any():
        fits = fits & traced
    plain = np.array([options.plain for options in sets], dtype=np.int64)[which]
    usual = np.array([options.typed.optimizer == _DEFAULT.optimizer for options in sets])[which]
    ranked = Columns(
        pace=pace, floor=floor, batch=batch, seq=seq, rank=rank, quality=quality, plain=plain, fits=fits, traced=traced,
        usual=usual,
    )  # fmt: skip
    # Ties beyond an objective's own keys: the option set that was listed first.
    keys = objective.keys(ranked)
    order = np.lexsort((which, *(-key for key in reversed(keys))))
    good = order[fits[order]]
    rest = order[~fits[order]]
    rest = rest[np.argsort(floor[rest], kind="stable")]
    return Ranking(
        sets=sets, which=which, accumulation=accumulation, columns=ranked, fits=fits, traced=traced, step_s=step_s,
        order=np.concatenate([good, rest]), lengths=objective.lengths,
    )  # fmt: skip


def _option_sets(
    factory: CandidateFactory,
    base: RunConfig,
    space: SearchSpace,
    objective: Objective,
    pace_on: GpuSpec,
) -> Iterator[tuple[OptionSet, list[int]]]:
    sizes = space.batches[:1] if objective.lengths else space.batches  # the smallest comes first
    kinds = [[size for size in sizes if size == 1], [size for size in sizes if size > 1]]
    if trainer_named(base.trainer).generation is not None:  # each with the completions of its own steps
        kinds = [[size] for size in sizes]
    refused: str | None = None
    runs = False
    room = Room(seq_len=base.seq_len)
    # What was played holds for one length, and for the steps that these batches make.
    holds = not objective.lengths and space.effective_batch == EFFECTIVE_BATCH and set(sizes) <= set(BATCHES)
    usual = factory.played if holds else None
    limit = 0 if usual is None else factory.limit_beside_context(base)
    for options in space.options:
        for rank in space.ranks:
            for batches in kinds:
                if not batches:
                    continue
                run = base.with_(**options, rank=rank, batch_size=batches[0])
                key = None if usual is None else key_of(run, usual.seq_len)
                if usual is None or key is None:
                    wanted, played = room.batches(options, rank, batches), None
                else:
                    worth = usual.worth(key, limit) if "checkpoint_every" in options else batches
                    wanted, played = [size for size in worth if size in batches], usual.row(key)
                if not wanted:
                    continue
                if trainer_named(run.trainer).generation is not None:  # completions of a whole step come together
                    run = run.with_(grad_accum=space.accumulation(batches[0], run))
                resolution = resolve(factory.profile, run, factory.gpu)
                if blocking := [
                    problem for problem in resolution.problems if problem.blocking and problem.code != STORED_QUANTIZED
                ]:
                    refused = refused or f"{blocking[0].message}; use {blocking[0].fix}"
                    continue
                runs = True
                prepared = replaced(_prepared(factory, run, resolution, pace_on), played=played)
                room.add(options, rank, batches, prepared.memory)
                yield prepared, wanted
    if not runs and refused is not None:
        raise NothingRunsError(f"no combination of the options left open runs: {refused}")


def _prepared(factory: CandidateFactory, run: RunConfig, resolution: Resolution, pace_on: GpuSpec) -> OptionSet:
    memory = factory.make(resolution)
    speed = factory.pace(resolution, pace_on)
    assert speed is not None, "the ranking card has rates"
    return option_set(run, memory, speed)


def option_set(typed: RunConfig, memory: CandidateMemory, speed: SpeedModel) -> OptionSet:
    """An option set with its place among others in quality and habit."""
    return OptionSet(
        typed=typed,
        memory=memory,
        speed=speed,
        quality=next((base.quality for base in WEIGHT_STORAGES if base.options["quant"] == memory.run.quant), 0),
        plain=sum(getattr(typed, name) == getattr(_DEFAULT, name) for name in _HABITS),
    )


def _lengths(
    options: OptionSet,
    run: RunConfig,
    objective: Objective,
    batch: int,
    accumulated: bool,
    model_limit: int | None,
    *,
    untraced: bool,
) -> NDArray[np.int64]:
    """The run's own length; where every length may be chosen, the longest that fits, of those that are traced where
    `untraced` ones are not wanted and there are any.
    """
    if not objective.lengths:
        return np.array([run.seq_len], dtype=np.int64)
    tokens = None
    if not untraced:
        tokens = longest(options.memory, batch, model_limit, accumulated, traced_alone=True)
    if tokens is None:
        tokens = longest(options.memory, batch, model_limit, accumulated)
    return np.array([tokens or SEQ_STEP], dtype=np.int64)


def _evaluate(
    number: int, options: OptionSet, space: SearchSpace, batch: Ints, seq: Ints, rows: Rows | None
) -> tuple[NDArray[Any], ...]:
    run = options.run
    accumulation = np.array([space.accumulation(size, run) for size in batch.tolist()], dtype=np.int64)
    floors, traced = _floors(options, batch, seq, accumulation > 1)
    fits = floors <= np.where(traced, *options.memory.largest_floors())
    timed = replaced(options.speed, work=replaced(options.speed.work, micro_steps=accumulation))
    if rows is None:
        step_s = timed.step_s(batch, seq, run.rank)
        pace = batch * seq * accumulation / step_s
    else:
        sizes = [rows(b, s, run.packing) for b, s in zip(batch.tolist(), seq.tolist(), strict=True)]
        padded, own = np.array(sizes, dtype=np.float64).T
        step_s = timed.step_s(batch, padded, run.rank)
        pace = batch * own * accumulation / step_s
    same = np.ones_like(batch)
    return (
        same * number, accumulation, pace, floors, batch, seq,
        same * run.rank, same * options.quality, fits, traced, step_s,
    )  # fmt: skip


def _floors(
    options: OptionSet, batch: Ints, seq: Ints, accumulated: NDArray[np.bool_]
) -> tuple[Ints, NDArray[np.bool_]]:
    """Each run's floor, played beforehand or ranked, and whether a trace holds for it."""
    kept = [None if options.played is None else options.played.get(size) for size in batch.tolist()]
    played = np.array([floor is not None for floor in kept])
    context = options.memory.budget.context_for(options.typed).total_bytes
    exact = np.array([floor or 0 for floor in kept], dtype=np.int64) + context
    if played.all():
        return exact, played
    floors, traced = options.memory.floors(batch, seq, accumulated)
    return np.where(played, exact, floors), traced | played
