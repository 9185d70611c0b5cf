"""Tapes packed for compiled code straight away: a tenth of the time of preparing and packing them in Python."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain

from qlora_planner.catalog import OptimizerRow, TrainerRow
from qlora_planner.memory.allocator.caching import CachingAllocator
from qlora_planner.memory.allocator.native import NativeModule, native_module
from qlora_planner.memory.records import Component
from qlora_planner.memory.replay.compiled import OnNative
from qlora_planner.memory.replay.events import PreparedTrace, first_handle
from qlora_planner.memory.replay.player import COMPONENTS
from qlora_planner.memory.replay.walking import frees_cache, left_out, phase_of
from qlora_planner.memory.weights.trainable import Trainable
from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import CompiledTape, Segment, Tape, births_of

# Numbers that memory/allocator/native/script.h knows; others have those that follow.
_NAMES, _STAGES = ("layer", "embedding", "head"), ("forward", "backward", "zero_grad")
_ON_HOST, _STREAMED, _WORKSPACE, _TAKEN = 1, 2, 4, 8
_PARTS = (
    Component.WORKSPACE, Component.GRADIENTS, Component.LOGITS_AND_LOSS, Component.CHECKPOINTS, Component.ACTIVATIONS,
)  # fmt: skip
NO_SEGMENT = -1
Pass = tuple[str, int, int]  # stage, step, micro-batch


@record
class Packed:
    """One tape: acts by segment, the part that each storage plays, and the row that each segment has in a stretch."""

    acts: list[bytes]
    parts: bytes
    places: bytes
    bases: dict[Pass, int]
    tables: int


def pack(
    tape: Tape, gradient_checkpointing: bool, taken: bool = False, checkpoint_every: int | None = None,
    among: Sequence[Tape] = (),
) -> Packed:  # fmt: skip
    """What `prepare_trace` and `Packing` make of a tape, `among` those of its run that are played with it."""
    tapes = (*among, tape)
    flat = {id(each): _compiled().flat(each.events) for each in tapes}
    storage_marks = bytearray(1 + max(largest for _, largest in flat.values()))
    for mark, storages in ((_ON_HOST, tape.on_host), (_STREAMED, tape.streamed), (_WORKSPACE, tape.workspaces)):
        for storage in storages:
            storage_marks[storage] |= mark
    if taken:
        storage_marks[first_handle(tape)] |= _TAKEN
    return _packed(tapes, flat[id(tape)][0], storage_marks, gradient_checkpointing, checkpoint_every or 0)


def pack_by_size(tape: CompiledTape) -> Packed:
    """The same of a compiled tape whose sizes are their own numbers, counted from 1."""
    marks = bytearray(1 + len(tape.sizes))  # by number of a size
    for mark, sizes in (
        (_ON_HOST, tape.host_sizes),
        (_STREAMED, tape.streamed_sizes),
        (_WORKSPACE, tape.workspace_sizes),
    ):
        for index in sizes:
            marks[index + 1] |= mark
    storage_marks = bytearray(1) + bytearray(map(marks.__getitem__, births_of(tape.events)))
    return _packed((tape,), _compiled().numbered(tape.events), storage_marks, False, 0)


def _compiled() -> NativeModule:
    compiled = native_module()
    assert compiled is not None, "asked for where something is compiled"
    return compiled


def _packed(
    tapes: Sequence[Tape | CompiledTape], events: bytes, storage_marks: bytearray, checkpoints: bool, every: int
) -> Packed:
    tape = tapes[-1]
    bases: dict[Pass, int] = {}
    for each in tapes:
        for segment in each.segments:
            bases.setdefault(pass_of(segment), len(bases) * (1 + len(each.places)))
    names = {name: number for number, name in enumerate(_NAMES)}
    stages = {stage: number for number, stage in enumerate(_STAGES)}
    rows = array("q")
    for segment in tape.segments:
        name, stage = names.setdefault(segment.name, len(names)), stages.setdefault(segment.stage, len(stages))
        rows.extend((segment.start, segment.stop, bases[pass_of(segment)], segment.layer, stage, name))
    options = array("q", (checkpoints, every, *(COMPONENTS.index(part) for part in _PARTS)))
    places = array("q", tape.places).tobytes()
    acts, parts = _compiled().pack(
        events,
        rows.tobytes(),
        places,
        array("q", tape.kept).tobytes(),
        bytes(storage_marks),
        options.tobytes(),
    )
    tables = len(bases) * (1 + max(len(each.places) for each in tapes))
    return Packed(acts=acts, parts=parts, places=places, bases=bases, tables=tables)


def pass_of(segment: Segment) -> Pass:
    """The pass of a segment: what is left alive of it has tables of its own."""
    return segment.stage, segment.step, segment.micro_step


class PackedReplayer(OnNative):
    """One playing of tapes that are packed: everything between two steps of the optimizer at once.

    `script` and those `before` it hold tapes alone; `packed` has what happens in each of them.
    """

    def __init__(
        self,
        memory: CachingAllocator,
        script: PreparedTrace,
        components: Sequence[int],
        packed: Sequence[tuple[PreparedTrace, Packed]],
    ) -> None:
        super().__init__(memory, script, components)
        self._packed = {id(each): pack for each, pack in packed}
        self._rows: dict[int, tuple[int, int, int]] = {}
        self._phases: dict[str, int] = {}
        self.begin_with(components)

    def use_script(self) -> None:
        """The compiled code plays from `script` now."""
        if self.script is self._used:
            return
        self._used, packed = self.script, self._packed[id(self.script)]
        self._native.use(packed.parts, packed.places, packed.tables)
        self._rows = {
            id(segment): (
                NO_SEGMENT if segment.stage == "prepare" else number,
                packed.bases[pass_of(segment)],
                self._phase(phase_of(segment)),
            )
            for number, segment in enumerate(self.script.tape.segments)
        }

    def _phase(self, name: str) -> int:
        return self._phases.setdefault(name, len(self._phases))

    def _segment(self, segment: Segment, layer: int) -> None:
        self.use_script()
        number, base, _ = self._rows[id(segment)]
        self._native.segment(self._packed[id(self.script)].acts[number], base, layer)

    def _round(
        self,
        walk: Iterable[tuple[Segment, int]],
        trained: Sequence[Trainable],
        run: RunConfig,
        trainer: TrainerRow,
        optimizer: OptimizerRow,
        *,
        first: bool,
        evaluates: bool,
    ) -> None:
        self.use_script()
        segments = self.script.tape.segments
        skipped = {id(each) for each in segments if left_out(each, evaluates=evaluates)}
        freed = {id(each) for each in segments if frees_cache(each, run, trainer, first=first)}
        optimizes = {id(each) for each in segments if each.stage == "optimizer"}
        steps: list[tuple[int, int, int, int, int]] = []
        for segment, layer in walk:
            key = id(segment)
            if key in skipped:
                continue
            number, base, phase = self._rows[key]
            pauses = key in freed or key in optimizes
            if pauses:
                self._played(steps)
                steps = []
                self._begin()
                if key in freed:
                    self.memory.empty_cache()
                if key in optimizes:
                    self._optimizer(trained, trainer, optimizer, first=first)
                    if first:
                        first = False
                        freed = {id(each) for each in segments if frees_cache(each, run, trainer, first=False)}
            steps.append((number, layer, base, phase, not pauses))
        self._played(steps)

    def _played(self, steps: Iterable[tuple[int, ...]]) -> None:
        """Play what waits, and note what each phase came to."""
        acts = self._packed[id(self.script)].acts
        packed = array("q", chain.from_iterable(steps)).tobytes()
        figures = self._native.stretch(acts, packed, len(self._phases))
        self.lost, self.host_peak = self._native.lost, self._native.host_peak
        for name, noted in zip(self._phases, figures, strict=True):
            if noted is not None:
                self.note(name, *noted)
