"""What lies around one run: a price for each knob, the longest sequence of each batch, and lengths at one batch.

All of it is ranked, not played: differences between two figures of the same making. Where a trace holds for one of two
runs alone, both are worked out by closed forms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlora_planner.catalog import TRAINER_ROWS
from qlora_planner.errors import InputError
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.planner.candidate_memory import (
    AS_RANKED,
    CandidateFactory,
    CandidateMemory,
    Ints,
    Scale,
)
from qlora_planner.planner.fallbacks import fallbacks
from qlora_planner.planner.records import Fallback, FrontierPoint, Price
from qlora_planner.planner.sweeps import MAX_BATCH, MAX_SEQ_LEN, SEQ_STEP
from qlora_planner.record import record
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.run import RunConfig

FRONTIER_BATCHES = (1, 2, 4, 8, 16, 32)
# Lengths tried first: four to an octave; then every 64 tokens inside the last gap.
_OCTAVE = 4


@record
class Knob:
    """A knob, and what turning it would make of a run; None where it is there already."""

    name: str
    turn: Callable[[RunConfig], dict[str, Any] | None]
    note: str = ""


def _halved(run: RunConfig) -> dict[str, Any] | None:
    if run.batch_size == 1:
        return None
    return {
        "batch_size": run.batch_size // 2,
        "grad_accum": -(-run.batch_size * run.grad_accum // (run.batch_size // 2)),
    }


def _doubled(run: RunConfig) -> dict[str, Any] | None:
    return {"batch_size": 2 * run.batch_size, "grad_accum": max(1, run.grad_accum // 2)}


def _set(**options: Any) -> Callable[[RunConfig], dict[str, Any] | None]:
    def turn(run: RunConfig) -> dict[str, Any] | None:
        changed = {name: value for name, value in options.items() if getattr(run, name) != value}
        return changed or None

    return turn


def _base(**options: Any) -> Callable[[RunConfig], dict[str, Any] | None]:
    plain = _set(**options)

    def turn(run: RunConfig) -> dict[str, Any] | None:
        return None if run.method == "full" or run.quant == options["quant"] else plain(run)

    return turn


KNOBS = (
    Knob(name="batch_size", turn=_halved, note="the same effective batch"),
    Knob(name="batch_size", turn=_doubled, note="the same effective batch while there is accumulation to halve"),
    Knob(name="seq_len", turn=lambda run: {"seq_len": 2 * run.seq_len}),
    Knob(name="seq_len", turn=lambda run: {"seq_len": max(1, run.seq_len // 2)} if run.seq_len > 1 else None),
    Knob(name="rank", turn=lambda run: None if run.method == "full" else {"rank": 2 * run.rank, "alpha": None}),
    Knob(
        name="target_modules",
        turn=lambda run: None if run.method == "full" else _set(target_modules="attention")(run),
    ),
    Knob(name="quant", turn=_base(method="qlora", quant="nf4", double_quant=True)),
    Knob(name="quant", turn=_base(method="qlora", quant="int8"), note="outliers of real activations cost more"),
    Knob(name="quant", turn=_base(method="lora", quant="none")),
    Knob(
        name="double_quant",
        turn=lambda run: {"double_quant": not run.double_quant} if run.quant in ("nf4", "fp4") else None,
    ),
    Knob(name="gradient_checkpointing", turn=lambda run: {"gradient_checkpointing": not run.gradient_checkpointing}),
    Knob(name="attention", turn=_set(attention="eager")),
    Knob(name="optimizer", turn=_set(optimizer="paged_adamw_8bit")),
    Knob(name="optimizer", turn=_set(optimizer="adamw_torch")),
    *(
        Knob(name="trainer", turn=_set(trainer=row.name, **row.without_others()))
        for row in sorted(TRAINER_ROWS.values(), key=lambda row: len(row.own_options))
        if row.launches
    ),
    Knob(name="upcast", turn=lambda run: {"upcast": not run.upcast}, note="prepare_model_for_kbit_training"),
    Knob(
        name="activation_offloading",
        turn=_set(activation_offloading=True),
        note="needs host RAM; its speed is not modelled",
    ),
    Knob(
        name="alloc_conf", turn=_set(alloc_conf="expandable_segments:True"),
        note="less slack between what is reserved and what is used",
    ),
)  # fmt: skip


def pace_ratio(pace: float | None, run: RunConfig, base_pace: float | None, base: RunConfig) -> float | None:
    """How many times as fast as `base` a run is; None where that is not known.

    What copies of activations to the host and back cost is not modelled.
    """
    if not pace or not base_pace or run.activation_offloading != base.activation_offloading:
        return None
    return pace / base_pace


def prices(factory: CandidateFactory, run: RunConfig, pace_on: GpuSpec, scale: Scale = AS_RANKED) -> Iterator[Price]:
    """A row per knob: what turning it costs (or, below zero, frees) in bytes of the floor, and the ratio of speeds.

    `run` is resolved, and `scale` what playing it took over its rank. What the stack refuses has its reason and no
    figures; a knob that changes nothing is left out.
    """
    base = _Point.of(factory, run, pace_on)
    played = base.floor(scale)
    fits = base.memory.fits(played, traced=base.traced is not None)
    for knob in KNOBS:
        change = knob.turn(run)
        if not change:
            continue
        price = Price(knob=knob.name, change={k: v for k, v in change.items() if v is not None}, note=knob.note or None)
        try:
            other = _Point.of(factory, _open(run, change), pace_on)
        except InputError as error:
            yield replace(price, refused=str(error))
            continue
        now, then, traced = _alike(base, other)
        # What needs no more than a run that fits does too; what needs more may be off by as much as its own figure.
        good = fits if then <= now else other.memory.fits(played + then - now, traced=traced)
        yield replace(price, bytes=then - now, speed=other.pace_over(base), fits=good)


def ladder(factory: CandidateFactory, run: RunConfig, pace_on: GpuSpec) -> Iterator[Fallback]:
    """What to give up, in order, if memory runs out: each rung keeps what those above it changed, and is ranked.

    `run` is resolved; `bytes` and `speed` are against it. A rung that the stack refuses is left out.
    """
    base = above = _Point.of(factory, run, pace_on)
    before, freed = run, 0
    for lower, says in fallbacks(run, factory.profile):
        changed = {name: value for name, value in lower.to_dict().items() if value != getattr(before, name)}
        try:
            other = _Point.of(factory, lower, pace_on)
        except InputError:
            continue
        # Rung by rung: two that stand beside each other are most likely of the same making.
        now, then, traced = _alike(above, other)
        freed += then - now
        before, above = lower, other
        yield Fallback(
            change=changed, says=says, bytes=freed, fits=other.memory.fits(then, traced=traced),
            speed=other.pace_over(base),
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


@record
class _Point:
    memory: CandidateMemory
    method: str
    traced: int | None
    closed: int
    pace: float | None

    def floor(self, scale: Scale) -> int:
        """The floor, scaled in the way in which it was ranked."""
        ranked = self.closed if self.traced is None else self.traced
        return scale.on(ranked, self.traced is not None)

    def pace_over(self, base: _Point) -> float | None:
        """How many times as fast: see `pace_ratio`."""
        return pace_ratio(self.pace, self.memory.run, base.pace, base.memory.run)

    @classmethod
    def of(cls, factory: CandidateFactory, run: RunConfig, pace_on: GpuSpec) -> _Point:
        resolution = resolve(factory.profile, run, factory.gpu)
        refused = [problem.message for problem in resolution.problems if problem.blocking]
        if refused:
            raise InputError(refused[0])
        memory, resolved = factory.make(resolution), resolution.run
        batch, seq = (np.array([size], dtype=np.int64) for size in (resolved.batch_size, resolved.seq_len))
        floor, traced = memory.floors(batch, seq)
        closed, _ = replace(memory, sweep=None).floors(batch, seq)
        model = factory.pace(resolution, pace_on)
        pace = (
            None if model is None else float(model.tokens_per_s(resolved.batch_size, resolved.seq_len, resolved.rank))
        )
        return cls(
            memory=memory, method=memory.method, traced=int(floor[0]) if traced[0] else None,
            closed=int(closed[0]), pace=pace,
        )  # fmt: skip


def frontier(
    factory: CandidateFactory, run: RunConfig, model_limit: int | None, scale: Scale = AS_RANKED
) -> tuple[FrontierPoint, ...]:
    """The longest sequence for each batch, with everything else as in `run`; None where not even 64 tokens fit.

    `scale` is what playing the chosen run took over its rank.
    """
    points = []
    for batch in FRONTIER_BATCHES:
        try:
            memory = candidate_memory_at(factory, run, batch, scale)
        except InputError:  # this batch is refused
            continue
        points.append(FrontierPoint(batch_size=batch, seq_len=longest(memory, batch, model_limit)))
    return tuple(points)


def candidate_memory_at(
    factory: CandidateFactory, run: RunConfig, batch: int, scale: Scale = AS_RANKED
) -> CandidateMemory:
    """The memory of `run` at another batch, where rows of unequal length are padded."""
    resolution = resolve(factory.profile, _open(run, {"batch_size": batch}), factory.gpu)
    return factory.make(resolution, scale)


def longest(
    memory: CandidateMemory, batch: int, model_limit: int | None, accumulated: bool | None = None
) -> int | None:
    """Tokens per sequence, a multiple of 64 up to what the model was trained for; None where 64 do not fit."""
    limits = memory.largest_floors()
    top = min(model_limit or MAX_SEQ_LEN, MAX_SEQ_LEN) // SEQ_STEP

    def fitting(steps: Ints) -> NDArray[np.bool_]:
        floors, traced = memory.floors(np.full_like(steps, batch), steps * SEQ_STEP, accumulated)
        return floors <= np.where(traced, *limits)

    steps_that_fit = _largest(fitting, top)
    return None if steps_that_fit is None else steps_that_fit * SEQ_STEP


def largest_batch(single: CandidateMemory, several: CandidateMemory, seq_len: int) -> int | None:
    """Sequences per micro-batch; `single` is the memory of one, `several` of more, which are padded."""

    def fitting(sizes: Ints) -> NDArray[np.bool_]:
        seq = np.full_like(sizes, seq_len)
        floors, traced = several.floors(sizes, seq)
        fits = floors <= np.where(traced, *several.largest_floors())
        alone, alone_traced = single.floors(np.ones_like(sizes), seq)
        return np.where(sizes == 1, alone <= np.where(alone_traced, *single.largest_floors()), fits)

    return _largest(fitting, MAX_BATCH)


def _largest(fitting: Callable[[Ints], NDArray[np.bool_]], top: int) -> int | None:
    """The largest size from 1 to `top` that fits; memory never falls as a size grows."""
    if top < 1:
        return None
    octaves = 2 ** np.arange(0, np.log2(top) + 1, 1 / _OCTAVE)
    sizes = np.array(sorted(set(np.minimum(top, octaves.astype(np.int64)).tolist())), dtype=np.int64)
    good = np.flatnonzero(fitting(sizes))
    if not len(good):
        return None
    last = int(good[-1])
    if last + 1 == len(sizes):
        return int(sizes[last])
    fine = np.arange(sizes[last], sizes[last + 1], dtype=np.int64)
    return int(fine[fitting(fine)][-1])
