"""A rank under FSDP2, played by compiled code: what lies between the marks of its scripts is, the marks are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qlora_planner.memory.allocator.caching import CachingAllocator
from qlora_planner.memory.parallel.fsdp2 import ShardedModel
from qlora_planner.memory.replay.compiled import OnNative
from qlora_planner.memory.replay.events import BIRTH, DEATH, DEATH_ELSEWHERE, Act, PreparedTrace
from qlora_planner.memory.replay.player import GRADIENTS
from qlora_planner.memory.replay.sharded import ShardedReplayer
from qlora_planner.spec.trace import Segment

_Piece = tuple[bytes, int | None]  # acts, and the mark that follows them; None at a segment's end


class NativeShardedReplayer(ShardedReplayer, OnNative):
    """As ShardedReplayer."""

    def __init__(
        self,
        memory: CachingAllocator,
        script: PreparedTrace,
        components: Sequence[int],
        model: ShardedModel,
        whole_head: bool,
        before: Sequence[PreparedTrace] = (),
    ) -> None:
        super().__init__(memory, script, components, model, whole_head, before)
        self._pieces: dict[Segment, list[_Piece]] = {}
        self.set_up(components, (self.script, *self._first))

    def forget_packed(self) -> None:
        self._pieces = {}

    def _acts(self, segment: Segment, layer: int) -> None:
        self.use_script()
        pieces = self._pieces.get(segment)
        if pieces is None:
            pieces = self._pieces[segment] = list(self._cut(segment))
        base = self.base_of(segment)
        for acts, mark in pieces:
            self._native.segment(acts, base, layer, mark is None)
            if mark is not None:
                self._at_mark(mark)

    def _cut(self, segment: Segment) -> Iterator[_Piece]:
        piece: list[Act] = []
        for kind, storage, size, component in self.script.acts[segment]:
            if kind == BIRTH:
                halved = component == GRADIENTS and self._halved
                piece.append((kind, storage, size // 2 if halved else size, component))
            elif kind == DEATH or (kind == DEATH_ELSEWHERE and storage not in self._gradients):
                piece.append((kind, storage, size, component))
            elif kind != DEATH_ELSEWHERE:
                yield self.packing.acts(self.script, segment, piece), kind
                piece = []
        yield self.packing.acts(self.script, segment, piece), None

    def _free_gradients(self, layer: int) -> None:
        for (stage, _, _), base in self.packing.bases.items():
            if stage == "backward":
                self._native.free_all(base + 1 + layer, GRADIENTS)
