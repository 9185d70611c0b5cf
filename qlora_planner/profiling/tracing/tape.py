"""The tape: births and deaths of storages during a training step, cut into segments. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ALLOCATOR_ROUNDING = 512  # bytes; c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize

# Stages of a step in the order in which they happen; a segment's stage decides to which phase its peak belongs.
STAGES = ("prepare", "forward", "loss", "backward", "after", "optimizer", "zero_grad")


def rounded(size: int) -> int:
    """Bytes that the caching allocator counts as allocated for a request of `size` bytes (nothing for nothing)."""
    return -(-size // ALLOCATOR_ROUNDING) * ALLOCATOR_ROUNDING


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One birth (`size` > 0) or death (`size` < 0) of the storage `storage`; `size` in unrounded bytes."""

    storage: int
    size: int
    op: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of events `[start, stop)`: one stage of one layer, or of what surrounds the layers."""

    stage: str
    name: str  # "layer", "outside" or "all"
    layer: int  # position in the traced model; -1 where there is none
    step: int
    micro_step: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentLevel:
    """Allocator bytes of one segment: alive when it starts, highest above that, and what it leaves behind."""

    segment: Segment
    start: int
    rise: int
    delta: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeStage:
    """A stage that handles all adapters at once, in the whole model: allocator bytes it rises by and leaves changed."""

    stage: str
    step: int
    rise: int
    delta: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tape:
    """Two training steps of a model cut down to `layer_kinds`, storage by storage.

    `static` events come before training: weights, adapters, buffers. `layer_kinds` names the kind of each traced
    layer, `layer_order` the kind of each layer of the whole model.
    """

    static: tuple[Event, ...]
    events: tuple[Event, ...]
    segments: tuple[Segment, ...]
    layer_kinds: tuple[str, ...]
    layer_order: tuple[str, ...]
    kept: tuple[int, ...]  # positions in the whole model of the traced layers
    static_by_layer: tuple[int, ...]  # rounded bytes of each traced layer's own weights and adapters
    whole: tuple[WholeStage, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def static_bytes(self) -> int:
        """Allocator bytes alive when training begins."""
        return sum(rounded(event.size) if event.size > 0 else -rounded(-event.size) for event in self.static)

    def levels(self) -> tuple[SegmentLevel, ...]:
        """Each segment's starting level, highest rise and lasting change."""
        now, found = self.static_bytes, []
        for segment in self.segments:
            start, top = now, now
            for event in self.events[segment.start : segment.stop]:
                now += rounded(event.size) if event.size > 0 else -rounded(-event.size)
                top = max(top, now)
            found.append(SegmentLevel(segment=segment, start=start, rise=top - start, delta=now - start))
        return tuple(found)

    def peak(self) -> int:
        """Highest allocator bytes of the traced (cut-down) model."""
        return max((level.start + level.rise for level in self.levels()), default=self.static_bytes)

    def segment_maxima(self) -> dict[str, int]:
        """Highest allocator bytes per stage of the traced model."""
        found: dict[str, int] = {}
        for level in self.levels():
            stage = level.segment.stage
            found[stage] = max(found.get(stage, 0), level.start + level.rise)
        return found

    def live_at(self, event_index: int) -> dict[int, Event]:
        """Storages alive just before the event with this index, with the event that made each."""
        alive: dict[int, Event] = {}
        for event in (*self.static, *self.events[:event_index]):
            if event.size > 0:
                alive[event.storage] = event
            else:
                alive.pop(event.storage, None)
        return alive

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Tape:
        """Read back what `to_dict` wrote."""
        return cls(
            static=tuple(Event(**event) for event in raw["static"]),
            events=tuple(Event(**event) for event in raw["events"]),
            segments=tuple(Segment(**segment) for segment in raw["segments"]),
            layer_kinds=tuple(raw["layer_kinds"]),
            layer_order=tuple(raw["layer_order"]),
            kept=tuple(raw["kept"]),
            static_by_layer=tuple(raw["static_by_layer"]),
            whole=tuple(WholeStage(**stage) for stage in raw.get("whole", ())),
            notes=tuple(raw.get("notes", ())),
        )


def running(events: Sequence[Event], start: int = 0) -> Iterator[int]:
    """Allocator bytes after each event."""
    now = start
    for event in events:
        now += rounded(event.size) if event.size > 0 else -rounded(-event.size)
        yield now
