"""The search: every option set of a space over every size, as arrays; best first by an objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.errors import InputError, NothingRunsError
from qlora_planner.memory.options.resolve import Resolution, resolve
from qlora_planner.memory.records import STORED_QUANTIZED
from qlora_planner.planner.candidate_memory import CandidateFactory, CandidateMemory, Ints
from qlora_planner.planner.knobs import SOME_LAYERS, generates, of_length
from qlora_planner.planner.neighbours import longest
from qlora_planner.planner.objectives import NEAR, Columns, Objective
from qlora_planner.planner.search_space import WEIGHT_STORAGES, SearchSpace
from qlora_planner.planner.sweeps import SEQ_STEP
from qlora_planner.record import record, replaced
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.roofline import SpeedModel

_DEFAULT = RunConfig()
# A rank is a median: what segments take over allocated bytes is 0.96 to 1.15 of what it assumes. Runs up to so much
# above the card are worth playing, a few of them.
NEARLY, MOST_NEARLY = 1.05, 2
_WHICH_LAYERS = ("gradient_checkpointing", "checkpoint_every")
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

    @property
    def run(self) -> RunConfig:
        """Resolved; batch and sequence stand for any."""
        return self.memory.run


@dataclass(slots=True)
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
        """The candidate that needs least."""
        return self.choice(int(self.columns.floor.argmin()))

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

    With `untraced` off, closed forms say what fits only where they must: where of all that is traced nothing does.
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
        raise InputError("no combination of the options left open runs on this stack; leave more of them open")
    which, accumulation, pace, floor, batch, seq, rank, quality, fits, traced, step_s = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    if not untraced and (fits & traced).any():
        fits = fits & traced
    plain = np.array([options.plain for options in sets], dtype=np.int64)[which]
    columns = Columns(
        pace=pace, floor=floor, batch=batch, seq=seq, rank=rank, quality=quality, plain=plain, fits=fits, traced=traced
    )
    # Ties beyond an objective's own keys: the option set that was listed first.
    keys = objective.keys(columns)
    order = np.lexsort((which, *(-key for key in reversed(keys))))
    good = order[fits[order]]
    rest = order[~fits[order]]
    rest = rest[np.argsort(floor[rest], kind="stable")]
    return Ranking(
        sets, which, accumulation, columns, fits, traced, step_s, np.concatenate([good, rest]), objective.lengths
    )


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
    room = _Room(base.seq_len)
    for options in space.options:
        for rank in space.ranks:
            for batches in kinds:
                wanted = room.batches(options, rank, batches)
                if not wanted:
                    continue
                run = base.with_(**options, rank=rank, batch_size=batches[0])
                if trainer_named(run.trainer).generation is not None:  # completions of a whole step come together
                    run = run.with_(grad_accum=space.accumulation(batches[0], run))
                resolution = resolve(factory.profile, run, factory.gpu)
                if blocking := [
                    problem for problem in resolution.problems if problem.blocking and problem.code != STORED_QUANTIZED
                ]:
                    refused = refused or f"{blocking[0].message}; use {blocking[0].fix}"
                    continue
                runs = True
                prepared = _prepared(factory, run, resolution, pace_on)
                room.add(options, rank, batches, prepared)
                yield prepared, wanted
    if not runs and refused is not None:
        raise NothingRunsError(f"no combination of the options left open runs: {refused}")


@dataclass(slots=True)
class _Room:
    """What is left on the card between checkpointing every layer and none, by the other options, rank and batches."""

    seq_len: int
    _ends: dict[Any, dict[bool, CandidateMemory]] = field(default_factory=dict)
    _steps: dict[Any, Mapping[int, list[int]]] = field(default_factory=dict)

    def add(self, options: Mapping[str, Any], rank: int, batches: Sequence[int], prepared: OptionSet) -> None:
        """Keep the memory of a run that checkpoints every layer or none."""
        if options.get("gradient_checkpointing") is not None and options.get("checkpoint_every") is None:
            ends = self._ends.setdefault(_beside_checkpointing(options, rank, batches), {})
            ends[prepared.run.gradient_checkpointing] = prepared.memory

    def batches(self, options: Mapping[str, Any], rank: int, batches: list[int]) -> list[int]:
        """Those at which a run of these options may be the fastest that fits."""
        every = options.get("checkpoint_every")
        key = _beside_checkpointing(options, rank, batches)
        ends = self._ends.get(key, {})
        if every is None or len(ends) < 2:
            return batches
        if key not in self._steps:
            self._steps[key] = self._worth_ranking(ends[True], ends[False], batches)
        return self._steps[key][every]

    def _worth_ranking(self, least: CandidateMemory, most: CandidateMemory, batches: list[int]) -> dict[int, list[int]]:
        """By the number of layers of which one is checkpointed, the batches at which that may be the best number.

        What the other layers keep lies between nothing and all by how many they are, to some percent: so at a batch the
        largest number that may fit is ranked, and smaller ones down to what does fit; none where no layer needs it.
        """
        batch = np.array(batches, dtype=np.int64)
        seq = np.full_like(batch, self.seq_len)
        (low, _), (high, _) = least.floors(batch, seq), most.floors(batch, seq)
        limit = max(least.largest_floors())
        steps: dict[int, list[int]] = {every: [] for every in SOME_LAYERS}
        for size, floor, whole in zip(batches, low.tolist(), high.tolist(), strict=True):
            if whole * NEARLY <= limit:
                continue
            between = {every: floor + (whole - floor) * (1 - 1 / every) for every in SOME_LAYERS}
            surely = [every for every in SOME_LAYERS if between[every] * NEARLY <= limit]
            for every in SOME_LAYERS:
                if between[every] <= NEARLY * limit and every >= max(surely, default=0):
                    steps[every].append(size)
        return steps


def _beside_checkpointing(options: Mapping[str, Any], rank: int, batches: Sequence[int]) -> Any:
    """The options of a set but for which layers are checkpointed, as a key."""
    others = sorted((name, repr(value)) for name, value in options.items() if name not in _WHICH_LAYERS)
    return tuple(others), rank, tuple(batches)


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
        plain=sum(getattr(typed, name) == getattr(_DEFAULT, name) for name in ("optimizer", "alloc_conf")),
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
    floors, traced = options.memory.floors(batch, seq, accumulation > 1)
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
