"""What a search rests on: the steps of its sizes, and what is traced of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from qlora_planner.memory.closed_form.static_peaks import StaticPeaks
from qlora_planner.memory.sweep.polynomials import FixedBytes, PeakPolynomials
from qlora_planner.memory.sweep.segments import SweptTape
from qlora_planner.memory.sweep.tasks import TaskRange, task_ranges, task_sizes
from qlora_planner.memory.sweep.validity import ValidityRange, last_within_window, validity_ranges
from qlora_planner.planner.knobs import SOME_LAYERS
from qlora_planner.planner.survey.played import PlayedRuns
from qlora_planner.record import record
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import CompiledTape

if TYPE_CHECKING:
    from qlora_planner.planner.candidate_memory import CandidateMemory

Ints = NDArray[np.int64]
# The tape that ships for a variant, a batch and a sequence, with the sizes it holds for.
ShippedOf = Callable[[str, int, int], tuple[CompiledTape, ValidityRange] | None]

SEQ_STEP = 64
MAX_SEQ_LEN = 1 << 20
MAX_BATCH = 1 << 12
# Sizes tried first: four to an octave; then every one inside the last gap.
_OCTAVE = 4
# Runs of one region that are ranked by tapes of their own, where one tape does not hold for all of them.
MOST_APART = 16
_BEFORE = ("load", "prepare", "adapters")  # phases before the first step
# What segments in use came to over what was allocated, at its highest: 1.00 to 1.18 with a median of 1.05 over 75
# played runs of 25 models. It ranks runs; an answer is played itself.
PINNED_OVER_ALLOCATED = 1.05
# A rank is a median: what segments take over allocated bytes is 0.96 to 1.15 of what it assumes. Runs up to so much
# above the card may fit.
NEARLY = 1.05
_WHICH_LAYERS = ("gradient_checkpointing", "checkpoint_every")


class Moments(Protocol):
    """The moments of a step that can be the highest, for a variant and sizes."""

    def on(self, workspace_bytes: int) -> Moments:
        """The same on a card where one cuBLAS handle takes `workspace_bytes`."""

    def highest(
        self, batch_size: Any, seq_len: Any, rank: int, fixed: FixedBytes, accumulates: bool, gradients: int
    ) -> NDArray[np.int64]:
        """The most bytes allocated in any training phase, for arrays of runs, shape (runs,)."""


M = TypeVar("M", bound=Moments)


@record
class SweptRange(Generic[M]):
    """Moments of one model, and the variant and sizes they hold for."""

    variant: str
    region: ValidityRange | TaskRange
    moments: M


class Sweep(Protocol):
    """What is traced of one model."""

    def parts_of(self, variant: str, batch: Ints, seq: Ints) -> Iterable[SweptRange[Any]]:
        """What holds for a variant, region by region, as far as runs of these sizes need it."""


@record
class KeptSweep:
    """Moments that are at hand for every region."""

    parts: tuple[SweptRange[PeakPolynomials], ...]

    def parts_of(self, variant: str, batch: Ints, seq: Ints) -> Iterable[SweptRange[Any]]:
        """Those of the variant."""
        return (part for part in self.parts if part.variant == variant)

    def find(self, variant: str, batch_size: int, seq_len: int) -> PeakPolynomials | None:
        """The moments for a run of this variant and these sizes; None where they lie outside every region."""
        for part in self.parts:
            if part.variant == variant and part.region.holds(batch_size, seq_len):
                return part.moments
        return None


@record
class TapeSweep:
    """Moments of tapes, each read and counted when a run first needs it: `tape_of` gives what ships for a variant, a
    batch and a sequence, None where nothing does.
    """

    profile: ModelProfile
    tape_of: ShippedOf
    played_of: Callable[[int], PlayedRuns | None] = lambda _: None  # by the bytes of a cuBLAS workspace
    _known: dict[tuple[str, TaskRange], SweptRange[SweptTape] | None] = field(default_factory=dict)
    _parts: dict[tuple[str, ValidityRange], list[SweptRange[SweptTape] | None]] = field(default_factory=dict)
    _regions: dict[bool, tuple[ValidityRange, ...]] = field(default_factory=dict)
    _of_sizes: dict[tuple[str, bytes, bytes], list[SweptRange[Any]]] = field(default_factory=dict)

    def played(self, workspace_bytes: int) -> PlayedRuns | None:
        """What the usual runs need where a cuBLAS handle takes so much; None of a model of which that is not kept."""
        return self.played_of(workspace_bytes)

    def parts_of(self, variant: str, batch: Ints, seq: Ints) -> Sequence[SweptRange[Any]]:
        """What ships for the variant, in regions that hold some of these runs."""
        key = variant, batch.tobytes(), seq.tobytes()
        if key not in self._of_sizes:
            tapes = self._tapes_read()
            parts = list(self._looked_up(variant, batch, seq))
            if tapes != self._tapes_read():
                self._of_sizes.clear()  # other sizes of a region may go by what was read just now
            self._of_sizes[key] = parts
        return self._of_sizes[key]

    def _tapes_read(self) -> int:
        return len(self._known) + sum(map(len, self._parts.values()))

    def _looked_up(self, variant: str, batch: Ints, seq: Ints) -> Iterator[SweptRange[Any]]:
        task = task_sizes(variant)
        if task is not None:
            yield from self._of_task(variant, task_ranges(task, last_within_window(self.profile)), batch, seq)
            return
        for batched in (False, True):
            of_kind = (batch > 1) == batched
            if not of_kind.any():
                continue
            if batched not in self._regions:
                self._regions[batched] = validity_ranges(self.profile, batched)
            for region in self._regions[batched]:
                inside = np.flatnonzero(of_kind & region.inside(batch, seq))
                if len(inside):
                    yield from self._of_region(variant, region, batch[inside], seq[inside])

    def _of_region(
        self, variant: str, region: ValidityRange, batch: Ints, seq: Ints
    ) -> Sequence[SweptRange[SweptTape]]:
        """One tape for the region, or as many as it takes to hold for all of these runs, where they are few: a head
        that goes tile by tile has a tape for each number of tiles."""
        parts = self._parts.setdefault((variant, region), [])
        if parts and parts[0] is None:
            return ()
        swept = [part for part in parts if part is not None]
        if any(part.region == region for part in swept):
            return swept
        apart = len(batch) <= MOST_APART
        for batch_size, seq_len in zip(batch.tolist(), seq.tolist(), strict=True):
            if (swept and not apart) or any(part.region.holds(batch_size, seq_len) for part in swept):
                continue
            part = self._swept(variant, batch_size, seq_len)
            if part is None:
                parts += [] if swept else [None]
                break
            swept.append(part)
            parts.append(part)
        return swept

    def _of_task(self, variant: str, regions: Sequence[TaskRange], batch: Ints, seq: Ints) -> Iterator[SweptRange[Any]]:
        """The same of a task: one tape for each range. Lengths that are odd where its own was even, or the other way
        round, are off by half a token."""
        for region in regions:
            inside = np.flatnonzero(region.inside(batch, seq))
            if not len(inside):
                continue
            key = variant, region
            if key not in self._known:
                shipped = self.tape_of(variant, int(batch[inside[0]]), int(seq[inside[0]]))
                self._known[key] = (
                    None
                    if shipped is None
                    else SweptRange(variant=variant, region=region, moments=SweptTape.of(shipped[0]))
                )
            part = self._known[key]
            if part is not None:
                yield part

    def _swept(self, variant: str, batch_size: int, seq_len: int) -> SweptRange[SweptTape] | None:
        shipped = self.tape_of(variant, batch_size, seq_len)
        if shipped is None:
            return None
        tape, region = shipped
        return SweptRange(variant=variant, region=region, moments=SweptTape.of(tape))


@record
class Room:
    """What is left on the card between checkpointing every layer and none, by the other options, rank and batches."""

    seq_len: int
    _ends: dict[Any, dict[bool, CandidateMemory]] = field(default_factory=dict)
    _steps: dict[Any, Mapping[int, list[int]]] = field(default_factory=dict)

    def add(self, options: Mapping[str, Any], rank: int, batches: Sequence[int], memory: CandidateMemory) -> None:
        """Keep the memory of a run that checkpoints every layer or none."""
        if options.get("gradient_checkpointing") is not None and options.get("checkpoint_every") is None:
            ends = self._ends.setdefault(_beside_checkpointing(options, rank, batches), {})
            ends[memory.run.gradient_checkpointing] = memory

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


def fixed_of(ground: StaticPeaks, run: RunConfig) -> FixedBytes:
    """What a run holds whatever its batch and sequence, for a sweep; `ground` must name what is trained."""
    weights = ground.static.buffers if run.method == "full" else ground.static.after_prepare
    return FixedBytes.of(weights, ground.state, sum(tensor.count for tensor in ground.static.trainable), run)


@cache
def _coarse(top: int) -> Ints:
    """Sizes from 1 to `top`, a few in each octave."""
    octaves = 2 ** np.arange(0, np.log2(top) + 1, 1 / _OCTAVE)
    return np.array(sorted(set(np.minimum(top, octaves.astype(np.int64)).tolist())), dtype=np.int64)


def largest(fitting: Callable[[Ints], NDArray[np.bool_]], top: int, least: int = 1) -> int | None:
    """The largest size from `least` to `top` that fits; memory never falls as a size grows."""
    if top < least:
        return None
    sizes = _coarse(top)
    sizes = sizes[np.maximum(0, np.searchsorted(sizes, least, side="right") - 1) :]
    good = np.flatnonzero(fitting(sizes))
    if not len(good):
        return None
    last = int(good[-1])
    if last + 1 == len(sizes):
        return int(sizes[last])
    fine = np.arange(sizes[last], sizes[last + 1], dtype=np.int64)
    return int(fine[fitting(fine)][-1])


def largest_batch(single: CandidateMemory, several: CandidateMemory, seq_len: int, least: int = 1) -> int | None:
    """Sequences per micro-batch, `least` or more, of those for which a trace ships; `single` is the memory of one,
    `several` of more, which are padded."""

    def fitting(sizes: Ints) -> NDArray[np.bool_]:
        fits, traced = several.fitting(sizes, np.full_like(sizes, seq_len))
        if sizes[0] == 1:
            fits[:1], traced[:1] = single.fitting(sizes[:1], np.array([seq_len], dtype=np.int64))
        return fits & traced

    return largest(fitting, MAX_BATCH, least)
