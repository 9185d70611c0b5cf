"""Allocated bytes of many runs at once, from a tape as it is: segment by segment, without playing the allocator.

A moment inside a segment is what was alive before it and what came and went in it since. The same traced segment stands
for many layers: its own moments are counted once, and what was alive before it once for each layer. What is highest in
a phase is then a maximum of sums. Only the last traced step counts: whatever lives in an earlier one lives in it too.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qlora_planner.memory.allocator.caching import MIN_BLOCK_BYTES
from qlora_planner.memory.allocator.native import native_module
from qlora_planner.memory.replay.events import (
    BIRTH,
    BIRTH_ON_HOST,
    BIRTH_STREAMED,
    DEATH,
    DEATH_ELSEWHERE,
    HOST,
    OUTSIDE,
    PreparedTrace,
    prepare_trace,
)
from qlora_planner.memory.replay.packed import NO_SEGMENT, pack_by_size, pass_of
from qlora_planner.memory.replay.player import GRADIENTS
from qlora_planner.memory.replay.simulate import without_collection
from qlora_planner.memory.replay.walking import accumulated, origin_layers, phase_of, walk
from qlora_planner.memory.sweep.polynomials import (
    NORMS,
    SCRATCH,
    STATES,
    FixedBytes,
    PeakPolynomials,
    handles_of,
)
from qlora_planner.record import record
from qlora_planner.spec.trace import CompiledTape, Segment

if TYPE_CHECKING:
    from collections.abc import Iterable

Counts = NDArray[np.float64]


class Moments(Protocol):
    """The moments of a step that may be its highest, by part."""

    @property
    def phases(self) -> list[str]:
        """The phase of each."""

    def levels(self, table: Counts) -> Counts:
        """The most blocks in each part, shape (parts, runs), of a `table` of shape (runs, sizes)."""


@record
class _Part:
    """What one traced segment does where the same of its storages are there already and the same ones die in it.

    `rows`: counts by size at its own highest moments, over what was alive before it, which `before` has once for each
    layer that it stands for.
    """

    phase: str
    rows: Counts
    net: Counts
    born: Mapping[int, int]
    before: list[Counts] = field(default_factory=list)


@record
class SweptTape:
    """The moments of one tape: those of a step, and of one that accumulates gradients over micro-batches."""

    sizes: PeakPolynomials
    moments: Mapping[bool, Moments]
    # A search asks the same sizes of many option sets.
    _highest: dict[tuple[Any, ...], NDArray[np.int64]] = field(default_factory=dict)
    _on: dict[int, SweptTape] = field(default_factory=dict)

    @classmethod
    def of(cls, tape: CompiledTape) -> SweptTape:
        """From a compiled tape, whatever the model's numbers. Of tokens that are generated one at a time the last one
        counts: by then what grows is largest."""
        tape = at_last_token(tape)
        handles = tuple(sorted(handles_of(tape)))
        with without_collection():
            once, again = _counted(tape) if native_module() is None else _counted_natively(tape)
        return cls(
            sizes=PeakPolynomials(sizes=tape.sizes, rows={}, workspaces=handles), moments={False: once, True: again}
        )

    def on(self, workspace_bytes: int) -> SweptTape:
        """The same on a card where one cuBLAS handle takes `workspace_bytes`."""
        if workspace_bytes not in self._on:
            sizes = self.sizes.on(workspace_bytes)
            self._on[workspace_bytes] = SweptTape(sizes=sizes, moments=self.moments)
        return self._on[workspace_bytes]

    def highest(
        self, batch_size: Any, seq_len: Any, rank: int, fixed: FixedBytes, accumulates: bool, gradients: int
    ) -> NDArray[np.int64]:
        """The most bytes allocated in any training phase, for arrays of runs, shape (runs,).

        `gradients`, the bytes of all of them, are not needed: a run that `accumulates` has moments of its own.
        Raises InputError for sizes beyond what 53 bits hold.
        """
        key = batch_size.tobytes(), seq_len.tobytes(), rank, fixed, accumulates
        if key not in self._highest:
            blocks = self._levels(batch_size, seq_len, rank, fixed, accumulates).max(axis=0)
            self._highest[key] = fixed.held + blocks.astype(np.int64) * MIN_BLOCK_BYTES
        return self._highest[key]

    def allocated_phases(
        self, batch_size: Any, seq_len: Any, rank: int, fixed: FixedBytes, accumulates: bool
    ) -> dict[str, NDArray[np.int64]]:
        """The same by phase."""
        levels = self._levels(batch_size, seq_len, rank, fixed, accumulates).astype(np.int64)
        phases = np.array(self.moments[accumulates].phases)
        return {
            phase: fixed.held + levels[phases == phase].max(axis=0) * MIN_BLOCK_BYTES
            for phase in dict.fromkeys(phases.tolist())
        }

    def _levels(self, batch_size: Any, seq_len: Any, rank: int, fixed: FixedBytes, accumulates: bool) -> Counts:
        return self.moments[accumulates].levels(self.sizes.table(batch_size, seq_len, rank, fixed).T)


@record
class _InRows:
    """Moments as rows of counts by size: by part, what was alive before it, and its own over that."""

    phases: list[str]
    before: list[Counts]
    rows: list[Counts]

    def levels(self, table: Counts) -> Counts:
        """See Moments."""
        return np.array(
            [
                (table @ before.T).max(axis=1) + (table @ rows.T).max(axis=1)
                for before, rows in zip(self.before, self.rows, strict=True)
            ]
        )


@record
class _Compiled:
    """Moments that compiled code holds."""

    phases: list[str]
    moments: object

    def levels(self, table: Counts) -> Counts:
        """See Moments."""
        compiled = native_module()
        assert compiled is not None, "they were counted by it"
        return np.frombuffer(compiled.levels(self.moments, table.tobytes())).reshape(len(self.phases), -1)


def at_last_token(tape: CompiledTape) -> CompiledTape:
    """The tape with the last traced token as large as the last of all."""
    if not tape.last_sizes:
        return tape
    last, born, events = dict(tape.last_sizes), 0, []
    for code in tape.events:
        born += code > 0
        events.append(last[born] + 1 if code > 0 and born in last else code)
    return replace(tape, events=tuple(events), last_sizes=())


def _counted(tape: CompiledTape) -> tuple[Moments, Moments]:
    """The moments of a step alone and of one that accumulates."""
    # Every size stands in for itself by its number.
    numbered = replace(tape, sizes=tuple(((index + 1, 1, (0, 0, 0)),) for index in range(len(tape.sizes))))
    return _Counting(prepare_trace(numbered.at(1, 1, 1), gradient_checkpointing=False), len(tape.sizes)).play()


def _counted_natively(tape: CompiledTape) -> tuple[Moments, Moments]:
    """The same by compiled code, in the order of `_Counting.play`."""
    compiled, packed, width = native_module(), pack_by_size(tape), len(tape.sizes) + 3
    assert compiled is not None, "asked for where something is compiled"
    bases = [packed.bases[pass_of(segment)] for segment in tape.segments]

    rows = {id(each): (number, bases[number]) for number, each in enumerate(tape.segments)}
    optimizes = {id(each) for each in tape.segments if each.stage == "optimizer"}

    def steps(order: Iterable[tuple[Segment, int]], *, evaluates: bool) -> bytes:
        skipped = {
            id(each) for each in tape.segments if each.stage == "prepare" or (each.stage == "eval" and not evaluates)
        }
        parts: list[tuple[int, int, int, int, int]] = []
        for segment, layer in order:
            key = id(segment)
            if key in skipped:
                continue
            if key in optimizes:
                parts.append((NO_SEGMENT, OUTSIDE, 0, 0, 0))
            number, base = rows[key]
            parts.append((number, layer, base, 0, 0))
        return array("q", chain.from_iterable(parts)).tobytes()

    rounds = [steps(walk(tape), evaluates=False)]
    if len({segment.step for segment in tape.segments}) == 1:
        same = not any(segment.stage == "eval" for segment in tape.segments)
        rounds.append(rounds[0] if same else steps(walk(tape), evaluates=True))
    apart = not any(segment.micro_step for segment in tape.segments)
    if apart:
        rounds.append(steps(accumulated(tape), evaluates=True))
    counted = compiled.count(packed.acts, packed.parts, packed.places, packed.tables, width, GRADIENTS, rounds)
    phases = {NO_SEGMENT: "optimizer", **{number: phase_of(each) for number, each in enumerate(tape.segments)}}
    last = [
        _Compiled(phases=[phases[number] for number in numbers], moments=moments) for numbers, moments in counted[-2:]
    ]
    return (last[-2] if apart else last[-1]), last[-1]


def _optimizer_rows(width: int) -> Counts:
    rows = np.zeros((2, width))
    rows[0, NORMS] = rows[1, SCRATCH] = 1
    return rows


class _Counting:
    """Plays the survivors of every segment for the whole model's layers, as `memory.replay.player` does."""

    def __init__(self, script: PreparedTrace, sizes: int) -> None:
        self.script = script
        self.width = sizes + 3
        self.base = np.zeros(self.width)
        self._alive: dict[tuple[str, int, int, int], dict[int, int]] = {}
        self._parts: dict[Any, _Part] = {}
        self._survivors: dict[int, frozenset[int]] = {}
        self._deaths: dict[int, list[int]] = {}
        for segment, acts in script.acts.items():
            own = {storage for kind, storage, *_ in acts if kind == DEATH}
            births = {s for kind, s, *_ in acts if kind in (BIRTH, BIRTH_STREAMED, BIRTH_ON_HOST)}
            self._survivors[id(segment)] = frozenset(births - own)
            self._deaths[id(segment)] = [storage for kind, storage, *_ in acts if kind == DEATH_ELSEWHERE]

    def play(self) -> tuple[Moments, Moments]:
        """See `_counted`."""
        segments = self.script.tape.segments
        self._round(walk(self.script.tape), evaluates=False)
        self.base[STATES] = 1
        if len({segment.step for segment in segments}) == 1:
            self._forget()
            self._round(walk(self.script.tape), evaluates=True)
        once = self._noted()
        if any(segment.micro_step for segment in segments):
            return once, once
        self._forget()
        self._round(accumulated(self.script.tape), evaluates=True)
        return once, self._noted()

    def _forget(self) -> None:
        for part in self._parts.values():
            part.before.clear()

    def _noted(self) -> _InRows:
        parts = [part for part in self._parts.values() if part.before]
        return _InRows(
            phases=[part.phase for part in parts],
            before=[np.array(part.before) for part in parts],
            rows=[part.rows for part in parts],
        )

    def _round(self, steps: Iterable[tuple[Segment, int]], *, evaluates: bool) -> None:
        for segment, layer in steps:
            if segment.stage == "prepare" or (segment.stage == "eval" and not evaluates):
                continue
            if segment.stage == "optimizer":
                self._optimizer()
            self._segment(segment, layer)

    def _optimizer(self) -> None:
        if "optimizer" not in self._parts:
            self._parts["optimizer"] = _Part(
                phase="optimizer", rows=_optimizer_rows(self.width), net=np.zeros(self.width), born={}
            )
        self._parts["optimizer"].before.append(self.base.copy())

    def _segment(self, segment: Segment, layer: int) -> None:
        freed = tuple(tuple(self._elsewhere(storage, segment, layer)) for storage in self._deaths[id(segment)])
        kept = self._alive.setdefault((segment.stage, segment.step, segment.micro_step, layer), {})
        there = self._survivors[id(segment)].intersection(kept) if kept else frozenset()
        key = id(segment), there, freed
        part = self._parts.get(key)
        if part is None:
            part = self._parts[key] = self._part(segment, there, freed)
        part.before.append(self.base)
        self.base = self.base + part.net
        kept.update(part.born)

    def _part(self, segment: Segment, there: frozenset[int], freed: tuple[tuple[int, ...], ...]) -> _Part:
        columns: list[int] = []
        signs: list[int] = []
        here: dict[int, int] = {}
        dead = iter(freed)
        for kind, storage, size, component in self.script.acts[segment]:
            if kind in (BIRTH, BIRTH_STREAMED):
                if storage in there:
                    if component == GRADIENTS:  # added to the gradient that is there, and gone
                        columns += (size - 1, size - 1)
                        signs += (1, -1)
                    continue
                here[storage] = size - 1
                columns.append(size - 1)
                signs.append(1)
            elif kind == DEATH:
                column = here.pop(storage)
                if column != HOST:
                    columns.append(column)
                    signs.append(-1)
            elif kind == BIRTH_ON_HOST:
                here[storage] = HOST
            else:
                for column in next(dead):
                    columns.append(column)
                    signs.append(-1)
        steps = np.zeros((len(columns) + 1, self.width))
        sign = np.array(signs, dtype=np.int64)
        steps[np.arange(1, len(columns) + 1), columns] = sign
        counts = steps.cumsum(axis=0)
        # Highest where something was born and the next thing dies; nothing but what was there is a moment too.
        top = np.flatnonzero((sign > 0) & np.append(sign[1:] < 0, True)) + 1
        return _Part(phase=phase_of(segment), rows=counts[np.append(0, top)], net=counts[-1], born=here)

    def _elsewhere(self, storage: int, segment: Segment, layer: int) -> Iterator[int]:
        """The columns of what dies of a storage that earlier segments left alive."""
        origin = self.script.origins[storage]
        born = origin.segment
        for whole in origin_layers(self.script.tape, origin, segment, layer):
            living = self._alive.get((born.stage, born.step, born.micro_step, whole), {})
            survivor: int | None = storage
            if storage not in living:
                # Another traced layer played this part: its survivor of the same size and rank is meant.
                survivor = next((o for o in living if self.script.origins[o].same_part(origin)), None)
            if survivor is not None and (column := living.pop(survivor)) != HOST:
                yield column
