"""The same playing by compiled code: traces packed as it reads them, and a player that leaves segments to it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import cast

from qlora_planner.memory.allocator.caching import Block, CachingAllocator
from qlora_planner.memory.allocator.native import NativeMemory
from qlora_planner.memory.replay import tokens
from qlora_planner.memory.replay.events import (
    DEATH_ELSEWHERE,
    HOST,
    Act,
    PreparedTrace,
    whereabouts,
)
from qlora_planner.memory.replay.player import GRADIENTS, TraceReplayer
from qlora_planner.memory.replay.tokens import Growth, growth_of, outlined
from qlora_planner.memory.replay.walking import phase_of
from qlora_planner.spec.trace import TOKENS, Segment

_Pass = tuple[str, int, int]  # stage, step, micro-batch


class Packing:
    """Numbers of storages and of passes, the same for all scripts of a run: a later one finds what an earlier one left.

    A pass has a table for each layer, after the one for what lies outside the layers.
    """

    def __init__(self, scripts: Sequence[PreparedTrace]) -> None:
        self.storages: dict[int, int] = {}
        self.bases: dict[_Pass, int] = {}
        for script in scripts:
            for segment, acts in script.acts.items():
                self.bases.setdefault(_pass_of(segment), len(self.bases) * (1 + len(script.tape.places)))
                for act in acts:
                    self.storages.setdefault(act[1], len(self.storages))
        self.tables = len(self.bases) * (1 + max(len(script.tape.places) for script in scripts))

    def parts(self, script: PreparedTrace) -> bytes:
        """By storage: a number that those have in common which play the same part; -1 for none."""
        numbers: dict[object, int] = {}
        parts = array("q", [-1]) * len(self.storages)
        for storage, origin in script.origins.items():
            if storage in self.storages:
                part = (origin.size, origin.rank, origin.end)
                parts[self.storages[storage]] = numbers.setdefault(part, len(numbers))
        return parts.tobytes()

    def acts(self, script: PreparedTrace, segment: Segment, acts: Sequence[Act]) -> bytes:
        """What happens in a segment, seven numbers an act."""
        storages, packed = self.storages, array("q")
        for kind, storage, size, component in acts:
            if kind == DEATH_ELSEWHERE:
                origin = script.origins[storage]
                rule, argument = whereabouts(script.tape, origin, segment)
                base = self.bases[_pass_of(origin.segment)]
                packed.extend((kind, storages[storage], size, component, rule, base, argument))
            else:
                packed.extend((kind, storages[storage], size, component, 0, 0, 0))
        return packed.tobytes()


def _pass_of(segment: Segment) -> _Pass:
    return segment.stage, segment.step, segment.micro_step


class OnNative(TraceReplayer):
    """What every player by compiled code does otherwise; its `memory` is what `native_memory` gives."""

    _native: NativeMemory
    packing: Packing
    _used: PreparedTrace | None = None

    def set_up(self, components: Sequence[int], scripts: Sequence[PreparedTrace]) -> None:
        """Before anything is played: bytes by component, and every script that will be played."""
        self.begin_with(components)
        self.packing = Packing(scripts)

    def begin_with(self, components: Sequence[int]) -> None:
        """Count bytes by component from here on."""
        self._native = cast("NativeMemory", self.memory)
        self._native.start(GRADIENTS, *components)

    def use_script(self) -> None:
        """The compiled code plays from `script` now."""
        if self.script is not self._used:
            self._used = self.script
            places = array("q", self.script.tape.places).tobytes()
            self._native.use(self.packing.parts(self.script), places, self.packing.tables)
            self.forget_packed()

    def forget_packed(self) -> None:
        """Segments are packed anew: they are of another script."""

    def base_of(self, segment: Segment) -> int:
        """The table of a segment's pass outside the layers; those of layers follow it."""
        return self.packing.bases[_pass_of(segment)]

    def _begin(self) -> None:
        self._native.begin()

    def _components_at_peak(self) -> tuple[int, ...]:
        return self._native.components()

    def _note(self, phase: str) -> None:
        super()._note(phase)
        self.lost, self.host_peak = self._native.lost, self._native.host_peak

    def _malloc(self, size: int, component: int, stream: int = 0) -> Block | None:
        return self._native.take(size, component, stream)

    def _free(self, block: Block | None, component: int) -> None:
        assert component != HOST
        self._native.give(block, component)

    def _recast(self, sizes: Sequence[int], blocks: list[Block | None], component: int) -> None:
        self._native.recast(array("q", sizes).tobytes(), blocks, component)

    def _hold(self, sizes: Sequence[int], component: int) -> None:
        self._native.take_all(array("q", sizes).tobytes(), component, False)

    def _pass(self, sizes: Sequence[int], component: int) -> None:
        self._native.take_all(array("q", sizes).tobytes(), component, True)


class NativeReplayer(OnNative):
    """One playing by compiled code."""

    def __init__(
        self,
        memory: CachingAllocator,
        script: PreparedTrace,
        components: Sequence[int],
        before: Sequence[PreparedTrace] = (),
    ) -> None:
        super().__init__(memory, script, components)
        self._packed: dict[Segment, bytes] = {}
        self.set_up(components, (script, *before))

    def forget_packed(self) -> None:
        self._packed = {}

    def _segment(self, segment: Segment, layer: int) -> None:
        self.use_script()
        acts = self._packed.get(segment)
        if acts is None:
            acts = self._packed[segment] = self.packing.acts(self.script, segment, self.script.acts[segment])
        self._native.segment(acts, self.base_of(segment), layer)

    def _later_tokens(self, token: Sequence[tuple[Segment, int]]) -> None:
        """All at once: what each is, `memory/replay/tokens.py` says."""
        self.use_script()
        growth, storages = growth_of(self.script.tape), self.packing.storages
        before, growing = array("q", [-1]) * len(storages), array("q", [-1]) * (3 * len(storages))
        for storage, earlier in growth.before.items():
            if storage in storages and earlier in storages:
                before[storages[storage]] = storages[earlier]
        for storage, sizes in growth.sizes.items():
            if storage in storages:
                at = 3 * storages[storage]
                growing[at : at + 3] = array("q", sizes)
        step, micro_step = token[0][0].step, token[0][0].micro_step
        bases = [self.packing.bases[stage, step, micro_step] for stage in TOKENS]
        ages = array("q", [base + 1 + layer for layer in sorted({layer for _, layer in token}) for base in bases])
        acts = {segment: self._of_a_token(segment, growth) for segment, _ in token}
        segments = [(*acts[segment], self.base_of(segment), layer) for segment, layer in token]
        self._begin()
        self._native.tokens(
            segments,
            growing.tobytes(),
            before.tobytes(),
            ages.tobytes(),
            len(TOKENS),
            growth.tokens,
            tokens.WHOLE,
            tokens.stride(growth.tokens),
        )
        self._note(phase_of(token[0][0]))

    def _of_a_token(self, segment: Segment, growth: Growth) -> tuple[bytes, bytes]:
        """All acts of a segment, and those of its outline, at the sizes of the last traced token."""
        acts = self.script.acts[segment]
        outline = outlined(self.script, growth, acts)
        return self.packing.acts(self.script, segment, acts), self.packing.acts(self.script, segment, outline)
