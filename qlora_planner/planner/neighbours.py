"""What lies around one run: a price for each knob, what to give up in order, and the longest sequence of each batch.

Where a run's trace ships, its neighbours are those whose traces ship too: estimated as it is, with the figures of
`estimate`, or ranked by their traces. Runs of which no trace ships at all are compared by closed forms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlora_planner.errors import InputError
from qlora_planner.memory.options.resolve import Resolution, resolve
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.memory.sweep.tasks import is_task
from qlora_planner.memory.unmodelled.qualified import CANNOT_SAY
from qlora_planner.planner.candidate_memory import AS_RANKED, CandidateFactory, CandidateMemory, Ints, Scale
from qlora_planner.planner.fallbacks import fallbacks
from qlora_planner.planner.knobs import at_batch, generates, knobs_of, of_length, whole_groups
from qlora_planner.planner.records import Fallback, FrontierPoint, Price
from qlora_planner.planner.sweeps import MAX_SEQ_LEN, SEQ_STEP, largest
from qlora_planner.record import record, replaced
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.run import RunConfig

FRONTIER_BATCHES = (1, 2, 4, 8, 16, 32)
# Lengths of one batch that are played before it is taken to hold none.
_MOST_PLAYS = 6
# How much more than its rank a traced run may take: unsplit remainders, at most 3.5 % of the tapes shipped.
_RANKS_DECIDE = 1.035


# The estimate of a run by a trace that ships; None where none does.
PlayedOf = Callable[[RunConfig], MemoryEstimate | None]
NO_TRACE = "no training step of it is recorded here: `estimate` records one, with the training packages"


def not_played(_run: RunConfig) -> MemoryEstimate | None:
    """For runs that are ranked alone."""
    return None


def pace_ratio(pace: float | None, run: RunConfig, base_pace: float | None, base: RunConfig) -> float | None:
    """How many times as fast as `base` a run is; None where that is not known.

    What copies of activations to the host and back cost is not modelled, nor how long completions take to generate, nor
    the work of a tower that reads images.
    """
    if generates(run) or run.images:
        return None
    copies = [(each.activation_offloading, each.checkpoint_offload) for each in (run, base)]
    if not pace or not base_pace or copies[0] != copies[1]:
        return None
    return pace / base_pace


def prices(
    factory: CandidateFactory,
    run: RunConfig,
    pace_on: GpuSpec,
    scale: Scale = AS_RANKED,
    played_of: PlayedOf = not_played,
) -> Iterator[Price]:
    """A row per knob: what turning it costs (or, below zero, frees) in bytes of the floor, and the ratio of speeds.

    `run` is resolved. Where its trace ships (see `played_of`), a row is the difference of two estimates, without
    figures for a neighbour whose trace does not; elsewhere of two ranks by traces, and `scale` is what the run
    took over its own. Whether a run fits is left open where its rank is within 3.5 % of the limit. Only of a run that
    is not traced itself are neighbours ranked by closed forms.
    What the stack refuses has its reason and no figures; a knob that changes nothing is left out.
    """
    here = played_of(run)
    base = _Pace.of(factory, run, pace_on)
    ranked = None if here is not None else _Point.of(factory, run)
    for knob in knobs_of(run, factory.profile):
        change = knob.turn(run)
        if not change:
            continue
        price = Price(knob=knob.name, change={k: v for k, v in change.items() if v is not None}, note=knob.note or None)
        try:
            turned = _open(run, change)
            pace = _Pace.of(factory, turned, pace_on)
            price = replaced(price, speed=pace.over(base))
            if here is not None:
                yield _played_price(price, here, played_of(turned))
            elif ranked is not None:
                point = _Point.of(factory, turned)
                if ranked.traced is not None and point.traced is None:
                    yield _without_trace(price)
                else:
                    yield _ranked_price(price, ranked, point, scale)
        except InputError as error:
            yield replaced(price, speed=None, refused=str(error))


def _played_price(price: Price, here: MemoryEstimate, there: MemoryEstimate | None) -> Price:
    if there is None:
        return _without_trace(price)
    return replaced(price, bytes=there.floor_bytes - here.floor_bytes, fits=_fits(there))


def _fits(answer: MemoryEstimate) -> bool | None:
    return None if answer.verdict == CANNOT_SAY else answer.verdict == "fits"


def _without_trace(price: Price) -> Price:
    return replaced(price, note="; ".join(filter(None, (price.note, NO_TRACE))))


def _ranked_price(price: Price, base: _Point, other: _Point, scale: Scale) -> Price:
    played = base.floor(scale)
    now, then, traced = _alike(base, other)
    # What needs no more than a run that fits does too; what needs more may be off by as much as its own figure.
    fits: bool | None = base.memory.fits(played, traced=base.traced is not None)
    more = then - now
    if more > 0:
        off = _RANKS_DECIDE if traced else 1.0
        least, most = (other.memory.fits(int((played + more) * by), traced=traced) for by in (1 / off, off))
        fits = least if least == most else None  # None: so near the limit that playing decides
    return replaced(price, bytes=more, fits=fits)


def ladder(
    factory: CandidateFactory, run: RunConfig, pace_on: GpuSpec, played_of: PlayedOf = not_played
) -> Iterator[Fallback]:
    """What to give up, in order, if memory runs out: each rung keeps what those above it changed.

    `run` is resolved; `bytes` and `speed` are against it. A rung that the stack refuses is left out. One whose trace
    does not ship frees what closed forms say that it does over the rung above, and of a task nobody says.
    """
    here = played_of(run)
    above, before, freed = run, run, 0
    fits: bool | None = False
    base = _Pace.of(factory, run, pace_on)
    for lower, says in fallbacks(run, factory.profile):
        changed = {name: value for name, value in lower.to_dict().items() if value != getattr(before, name)}
        try:
            pace = _Pace.of(factory, lower, pace_on)
            there = None if here is None else played_of(lower)
            # For a task, or a tower that reads images, no closed forms stand in.
            unsaid = there is None and here is not None and (is_task(run) or run.shows_images)
            if there is not None and here is not None:
                freed, fits = there.floor_bytes - here.floor_bytes, _fits(there)
            elif not unsaid:
                # Rung by rung: two that stand beside each other are most likely of the same making.
                first, second = _Point.of(factory, above), _Point.of(factory, lower)
                now, then, traced = _alike(first, second)
                freed += then - now
                taken = then if here is None else here.floor_bytes + freed
                fits = second.memory.fits(taken, traced=traced or here is not None)
        except InputError:
            continue
        before = above = lower
        yield Fallback(
            change=changed, says=says, bytes=None if unsaid else freed, fits=None if unsaid else fits,
            speed=pace.over(base),
        )  # fmt: skip


def _alike(base: _Point, other: _Point) -> tuple[int, int, bool]:
    """Two floors of the same making, and whether that is a trace, else closed forms."""
    if base.traced is not None and other.traced is not None:
        return base.traced, other.traced, True
    return base.closed, other.closed, False


def _open(run: RunConfig, change: Mapping[str, Any]) -> RunConfig:
    """The changed run with its autos open again, as far as they hang on what was changed."""
    opened: dict[str, Any] = {
        "padding": None if run.padding == (run.batch_size > 1 and not run.packing) else run.padding
    }
    if "target_modules" in change or "quant" in change or "trainer" in change:
        opened["lora_dropout"] = None
    return run.with_(**{**opened, **change})


def _accepted(factory: CandidateFactory, run: RunConfig) -> Resolution:
    """Raises InputError with the first reason why the stack refuses a run."""
    resolution = resolve(factory.profile, run, factory.gpu)
    refused = [problem.message for problem in resolution.problems if problem.blocking]
    if refused:
        raise InputError(refused[0])
    return resolution


@record
class _Pace:
    """How fast a run is; None where that is not known."""

    run: RunConfig
    tokens_per_s: float | None

    def over(self, base: _Pace) -> float | None:
        """How many times as fast: see `pace_ratio`."""
        return pace_ratio(self.tokens_per_s, self.run, base.tokens_per_s, base.run)

    @classmethod
    def of(cls, factory: CandidateFactory, run: RunConfig, pace_on: GpuSpec) -> _Pace:
        resolution = _accepted(factory, run)
        model, resolved = factory.pace(resolution, pace_on), resolution.run
        if model is None:
            return cls(run=resolved, tokens_per_s=None)
        pace = model.tokens_per_s(resolved.batch_size, resolved.seq_len, resolved.rank)
        return cls(run=resolved, tokens_per_s=float(pace))


@record
class _Point:
    """A run as it is ranked, by its trace and by closed forms."""

    memory: CandidateMemory
    traced: int | None
    closed: int

    def floor(self, scale: Scale) -> int:
        """The floor, scaled in the way in which it was ranked."""
        ranked = self.closed if self.traced is None else self.traced
        return scale.on(ranked, self.traced is not None)

    @classmethod
    def of(cls, factory: CandidateFactory, run: RunConfig) -> _Point:
        resolution = _accepted(factory, run)
        memory, resolved = factory.make(resolution), resolution.run
        batch, seq = (np.array([size], dtype=np.int64) for size in (resolved.batch_size, resolved.seq_len))
        floor, traced = memory.floors(batch, seq)
        closed, _ = replaced(memory, sweep=None).floors(batch, seq)
        return cls(memory=memory, traced=int(floor[0]) if traced[0] else None, closed=int(closed[0]))


def frontier(
    factory: CandidateFactory,
    run: RunConfig,
    model_limit: int | None,
    scale: Scale = AS_RANKED,
    played_of: PlayedOf = not_played,
) -> tuple[FrontierPoint, ...]:
    """The longest sequence for each batch, with everything else as in `run`; None where not even 64 tokens fit.

    `scale` is what playing the chosen run took over its rank. Where its trace ships, each point is a run that fits by
    its own estimate (`played_of` may give one whose floor is too large rather than too small); elsewhere it is ranked.
    """
    points = []
    here = played_of(run)
    if here is not None:
        scale = AS_RANKED  # the last batch's own takes its place
    for batch in FRONTIER_BATCHES:
        if not whole_groups(run.with_(**at_batch(run, batch))):
            continue
        try:
            memory = candidate_memory_at(factory, run, batch, scale)
        except InputError:  # this batch is refused
            continue
        ranked = longest(memory, batch, model_limit)
        played = here is not None and memory.traced_at(batch, ranked or SEQ_STEP)
        if here is not None and not played and is_task(run):  # for which no closed forms stand in
            continue
        if played:
            ranked, scale = longest_played(memory, batch, model_limit, played_of)
        if here is not None and here.verdict == "fits" and batch == run.batch_size:
            ranked = max(ranked or 0, run.seq_len)  # known to fit, where its rank is just over the limit
        points.append(FrontierPoint(batch_size=batch, seq_len=ranked, played=played))
    return tuple(points)


def longest_played(
    memory: CandidateMemory, batch: int, model_limit: int | None, played_of: PlayedOf
) -> tuple[int | None, Scale]:
    """The longest sequence near the longest by rank that fits by its own estimate, and what playing it took over its
    rank, by which it is ranked anew where it does not fit.
    """
    if generates(memory.run):
        return _longest_completion(memory, batch, model_limit, played_of), memory.scale
    scale, tried = memory.scale, 1 << 62
    for _ in range(_MOST_PLAYS):
        ranked = longest(replaced(memory, scale=scale), batch, model_limit, traced_alone=True) or SEQ_STEP
        tried = min(ranked, tried - SEQ_STEP)
        if tried < SEQ_STEP:
            break
        answer = played_of(of_length(memory.run, tried))
        if answer is None:
            break
        if answer.verdict == "fits":
            return tried, scale
        as_ranked = replaced(memory, scale=AS_RANKED)
        scale = Scale.of(as_ranked.at(batch, tried), True, answer.floor_bytes)
    return None, scale


def _longest_completion(
    memory: CandidateMemory, batch: int, model_limit: int | None, played_of: PlayedOf
) -> int | None:
    """The same for completions that are generated: as a cache grows it takes up to three times its rank, by no one
    ratio, so what was played brackets the length, and floors between are taken to be on a line."""
    limit, _ = memory.largest_floors()
    # A sequence with hardly a completion: there the rank is near.
    low = -(-((memory.run.prompt_len or 0) + 1) // SEQ_STEP) * SEQ_STEP
    floor, fits, high, above = memory.at(batch, low), None, None, 0
    ranked = longest(replaced(memory, scale=AS_RANKED), batch, model_limit, traced_alone=True)
    tried = max(ranked or 0, low)
    for _ in range(_MOST_PLAYS):
        answer = played_of(of_length(memory.run, tried))
        if answer is None:
            break
        if answer.verdict == "fits":
            low, floor, fits = tried, answer.floor_bytes, tried
        else:
            high, above = tried, answer.floor_bytes
        least = low if fits is None else low + SEQ_STEP
        if high is None or high <= least:
            break
        share = (limit - floor) / max(above - floor, 1)
        between = low + int((high - low) * share) // SEQ_STEP * SEQ_STEP
        tried = min(max(between, least), high - SEQ_STEP)
    return fits


def candidate_memory_at(
    factory: CandidateFactory, run: RunConfig, batch: int, scale: Scale = AS_RANKED
) -> CandidateMemory:
    """The memory of `run` at another batch, where rows of unequal length are padded."""
    resolution = resolve(factory.profile, _open(run, at_batch(run, batch)), factory.gpu)
    return factory.make(resolution, scale)


def longest(
    memory: CandidateMemory,
    batch: int,
    model_limit: int | None,
    accumulated: bool | None = None,
    *,
    traced_alone: bool = False,
    least: int = SEQ_STEP,
) -> int | None:
    """Tokens per sequence, a multiple of 64 up to what the model was trained for; None where 64 do not fit.

    With `traced_alone`, of lengths for which a trace ships. So many as `least` are known to fit.
    """
    top = min(model_limit or MAX_SEQ_LEN, MAX_SEQ_LEN) // SEQ_STEP

    def fitting(steps: Ints) -> NDArray[np.bool_]:
        good, traced = memory.fitting(np.full_like(steps, batch), steps * SEQ_STEP, accumulated)
        return good & traced if traced_alone else good

    steps_that_fit = largest(fitting, top, max(1, least // SEQ_STEP))
    return None if steps_that_fit is None else steps_that_fit * SEQ_STEP
