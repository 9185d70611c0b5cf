"""Allocator events in one form: from CUDA's caching allocator, or from torch's profiler on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

ALLOC, FREE, SEGMENT, SEGMENT_END, OOM = "alloc", "free", "segment", "segment-end", "oom"
# torch/csrc/cuda/memory_snapshot.cpp: the names of the allocator's trace entries. A block is the allocator's own again
# when its free completes; until then (waiting for another stream) it still counts as allocated.
_CUDA_KINDS = {
    "alloc": ALLOC,
    "free_completed": FREE,
    "segment_alloc": SEGMENT,
    "segment_map": SEGMENT,
    "segment_free": SEGMENT_END,
    "segment_unmap": SEGMENT_END,
    "oom": OOM,
}
# c10/core/AllocatorConfig.h: every block is a multiple of this, and the counters count blocks.
CUDA_BLOCK = 512
# CUDA traces beyond this many entries lose their beginning; an 80-layer model takes some 10,000 a step.
MOST_ENTRIES = 2_000_000


@dataclass(frozen=True, slots=True)
class MemoryEvent:
    """One event; `time_ns` since the epoch, `size` in bytes as the allocator counts them."""

    time_ns: int
    kind: str
    address: int
    size: int


def record_cuda() -> None:
    """Keep every event of the caching allocator from now on, without call stacks."""
    import torch

    torch.cuda.memory._record_memory_history(enabled="all", context=None, stacks="python", max_entries=MOST_ENTRIES)


def take_cuda(device: int = 0) -> list[MemoryEvent]:
    """The events since `record_cuda`, oldest first; recording ends."""
    import torch

    traces = torch.cuda.memory._snapshot()["device_traces"]
    torch.cuda.memory._record_memory_history(enabled=None)
    return from_cuda_trace(traces[device]) if device < len(traces) else []


def from_cuda_trace(entries: Iterable[dict[str, Any]]) -> list[MemoryEvent]:
    """Entries of `_snapshot()["device_traces"][device]` as events; kinds that hold no memory are left out."""
    events = []
    for entry in entries:
        kind = _CUDA_KINDS.get(entry["action"])
        if kind is not None:
            size = int(entry["size"])
            rounded = -(-size // CUDA_BLOCK) * CUDA_BLOCK if kind in (ALLOC, FREE) else size
            events.append(MemoryEvent(int(entry["time_us"]) * 1000, kind, int(entry.get("addr") or 0), rounded))
    return events


def from_profiler(profile: Any) -> list[MemoryEvent]:
    """Host allocations of a finished `torch.profiler.profile(profile_memory=True)`, oldest first."""
    from torch._C._profiler import _EventType

    events = []
    for node in _nodes(profile.profiler.kineto_results.experimental_event_tree()):
        if node.tag == _EventType.Allocation and node.extra_fields.device.type == "cpu":
            size = int(node.extra_fields.alloc_size)
            kind = ALLOC if size >= 0 else FREE
            events.append(MemoryEvent(int(node.start_time_ns), kind, int(node.extra_fields.ptr), abs(size)))
    return sorted(events, key=lambda event: event.time_ns)


def _nodes(roots: Iterable[Any]) -> Iterator[Any]:
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(node.children)
