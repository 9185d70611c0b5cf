"""Peaks by phase: torch's CUDA counters, read and reset at every border; on a host, the profiler's events."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

from qlora_planner.evidence import PhaseReading
from qlora_planner.measure.events import ALLOC, FREE, MemoryEvent, from_profiler, record_cuda, take_cuda
from qlora_planner.measure.meters.sampler import larger

# Stretches of a run in the order in which they come, and the phases that each is part of. `cast` is what a trainer
# does to the adapters before its first step.
STRETCHES: dict[str, tuple[str, ...]] = {
    "load": ("load",),
    "prepare": ("prepare",),
    "adapters": ("adapters",),
    "cast": ("adapters", "training"),
    "wrap": ("wrap",),  # of ranks of several: their trainer shards the model, or hands one copy round
    "generate": ("generate", "training"),
    "forward": ("forward", "training"),
    "backward": ("backward", "training"),
    "optimizer": ("optimizer", "training"),
    "between": ("training",),
    "eval": ("eval",),
    "save": ("save",),
}
# What is live at the end of `adapters` is read before the trainer casts them.
_LIVE_FROM = {"adapters": ("adapters",)}


class Meter(Protocol):
    """Reads memory over stretches of a run."""

    def enter(self, stretch: str) -> None:
        """The current stretch ends, `stretch` begins."""

    def finish(self) -> tuple[dict[str, PhaseReading], list[MemoryEvent]]:
        """The last stretch ends. Readings by phase, and the events where they were kept."""

    def allocated(self) -> int | None:
        """Bytes allocated now; None where that is only known afterwards."""


class CudaMeter:
    """torch.cuda's peak counters. With `keep_events` every allocation is kept too."""

    def __init__(self, *, keep_events: bool) -> None:
        self._keep = keep_events
        self._peaks: dict[str, tuple[int, int]] = {}
        self._live: dict[str, int] = {}
        self._current: str | None = None
        if keep_events:
            record_cuda()

    def enter(self, stretch: str) -> None:
        self._close()
        self._current = stretch

    def finish(self) -> tuple[dict[str, PhaseReading], list[MemoryEvent]]:
        self._close()
        self._current = None
        readings = merge({name: (*peaks, self._live[name]) for name, peaks in self._peaks.items()})
        return readings, take_cuda() if self._keep else []

    def allocated(self) -> int | None:
        import torch

        return int(torch.cuda.memory_allocated())

    def _close(self) -> None:
        import torch

        cuda = torch.cuda
        if self._current is not None:
            name = self._current
            allocated, reserved = self._peaks.get(name, (0, 0))
            self._peaks[name] = max(allocated, cuda.max_memory_allocated()), max(reserved, cuda.max_memory_reserved())
            self._live[name] = cuda.memory_allocated()
        cuda.reset_peak_memory_stats()


class CpuMeter:
    """torch's profiler on the host: exact allocations, known when it is stopped. No reserved figures."""

    def __init__(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        self._profile: Any = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
        self._marks: list[tuple[int, str]] = []
        self._profile.start()

    def enter(self, stretch: str) -> None:
        self._marks.append((time.time_ns(), stretch))

    def finish(self) -> tuple[dict[str, PhaseReading], list[MemoryEvent]]:
        end = time.time_ns()
        self._profile.stop()
        events = from_profiler(self._profile)
        return merge(peaks_between(events, [*self._marks, (end, "")])), events

    def allocated(self) -> int | None:
        return None


def peaks_between(
    events: Sequence[MemoryEvent], marks: Sequence[tuple[int, str]]
) -> dict[str, tuple[int, int | None, int]]:
    """Stretch -> (peak, no reserved figure, live at its end) from events and the times at which stretches begin.

    The last mark ends the last stretch. Frees of blocks from before the events began are none of theirs.
    """
    peaks: dict[str, tuple[int, int | None, int]] = {}
    sizes: dict[int, int] = {}
    live, position = 0, 0

    def play(until_ns: int) -> int:
        nonlocal live, position
        highest = live
        while position < len(events) and events[position].time_ns < until_ns:
            event = events[position]
            if event.kind == ALLOC:
                sizes[event.address] = event.size
                live += event.size
            elif event.kind == FREE:
                live -= sizes.pop(event.address, 0)
            highest = max(highest, live)
            position += 1
        return highest

    if marks:
        play(marks[0][0])
    for (_, stretch), (end_ns, _) in pairwise(marks):
        highest = max(play(end_ns), peaks.get(stretch, (0, None, 0))[0])
        peaks[stretch] = (highest, None, live)
    return peaks


def merge(stretches: dict[str, tuple[int, int | None, int]]) -> dict[str, PhaseReading]:
    """Readings by phase from (allocated peak, reserved peak, live at the end) by stretch, in the order of stretches."""
    phases: dict[str, PhaseReading] = {}
    for stretch, (allocated, reserved, live) in stretches.items():
        for phase in STRETCHES.get(stretch, ()):
            before = phases.get(phase, PhaseReading())
            keeps_live = stretch not in _LIVE_FROM.get(phase, (stretch,))
            phases[phase] = PhaseReading(
                allocated_bytes=larger(before.allocated_bytes, allocated),
                reserved_bytes=larger(before.reserved_bytes, reserved),
                live_bytes=before.live_bytes if keeps_live else live,
            )
    return phases
