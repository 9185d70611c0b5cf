"""Playing a run whose model is wrapped for several cards, between the trainer's casts and the first step."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_planner.memory.allocator.caching import Block, CachingAllocator
from qlora_planner.memory.parallel.ddp import IN_FLIGHT, Wrapping
from qlora_planner.memory.records import WRAP, Component
from qlora_planner.memory.replay.compiled import NativeReplayer
from qlora_planner.memory.replay.events import PreparedTrace
from qlora_planner.memory.replay.player import COMPONENTS, TraceReplayer

_COMMUNICATION = COMPONENTS.index(Component.COMMUNICATION)


class _Wraps(TraceReplayer):
    """Between the trainer's casts and the first step, what `wrapping` does."""

    wrapping: Wrapping

    def _wrap(self) -> None:
        """What passes leaves as many behind as are in flight; what stays comes after."""
        self._begin()
        flying: list[Block | None] = []
        for size in self.wrapping.passing:
            if len(flying) == IN_FLIGHT:
                self._free(flying.pop(0), _COMMUNICATION)
            flying.append(self._malloc(size, _COMMUNICATION))
        for block in flying:
            self._free(block, _COMMUNICATION)
        for size in self.wrapping.kept:
            self._malloc(size, _COMMUNICATION)
        self._note(WRAP)


class WrappedReplayer(_Wraps):
    """One playing of a rank whose model `wrapping` wraps."""

    def __init__(
        self, memory: CachingAllocator, script: PreparedTrace, components: Sequence[int], wrapping: Wrapping
    ) -> None:
        super().__init__(memory, script, components)
        self.wrapping = wrapping


class WrappedNativeReplayer(NativeReplayer, _Wraps):
    """The same by compiled code."""

    def __init__(
        self,
        memory: CachingAllocator,
        script: PreparedTrace,
        components: Sequence[int],
        wrapping: Wrapping,
        before: Sequence[PreparedTrace],
    ) -> None:
        super().__init__(memory, script, components, before)
        self.wrapping = wrapping
