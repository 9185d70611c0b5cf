"""Peaks by phase, from events and from CUDA's counters (invented ones)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qlora_planner.evidence import PhaseReading
from qlora_planner.measure.events import ALLOC, FREE, MemoryEvent
from qlora_planner.measure.meters.meter import CpuMeter, CudaMeter, merge, peaks_between

torch = pytest.importorskip("torch")


def test_peaks_between_marks() -> None:
    events = [
        MemoryEvent(1, ALLOC, 100, 1000),  # before anything is measured, but alive
        MemoryEvent(11, ALLOC, 1, 50),
        MemoryEvent(12, FREE, 999, 7),  # a block from before recording
        MemoryEvent(21, ALLOC, 2, 30),
        MemoryEvent(22, FREE, 2, 30),
        MemoryEvent(31, FREE, 1, 50),
    ]
    found = peaks_between(events, [(10, "load"), (20, "forward"), (30, "load"), (40, "")])
    assert found == {"load": (1050, None, 1000), "forward": (1080, None, 1050)}


def test_training_spans_casting_and_steps_and_adapters_live_before_casting() -> None:
    found = merge({
        "adapters": (100, 500, 90), "cast": (140, 300, 80), "forward": (200, 310, 150), "backward": (260, 320, 120),
        "optimizer": (130, 320, 125), "between": (126, 320, 85),
    })  # fmt: skip
    assert found["adapters"] == PhaseReading(allocated_bytes=140, reserved_bytes=500, live_bytes=90)
    assert found["training"] == PhaseReading(allocated_bytes=260, reserved_bytes=320, live_bytes=85)
    assert found["backward"].allocated_bytes == 260
    assert "load" not in found


def test_the_profiler_sees_what_is_allocated_and_freed() -> None:
    meter = CpuMeter()
    meter.enter("load")
    kept = torch.empty(1 << 20, dtype=torch.uint8)
    meter.enter("forward")
    passing = torch.empty(3 << 20, dtype=torch.uint8)
    del passing
    meter.enter("backward")
    readings, events = meter.finish()
    assert readings["load"] == PhaseReading(allocated_bytes=1 << 20, live_bytes=1 << 20)
    assert readings["forward"] == PhaseReading(allocated_bytes=4 << 20, live_bytes=1 << 20)
    assert readings["backward"].allocated_bytes == 1 << 20
    assert kept.data_ptr() in {event.address for event in events}


class Counters:
    """torch.cuda's counters, set by hand."""

    def __init__(self) -> None:
        self.now = self.peak = self.reserved = 0

    def take(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)
        self.reserved = max(self.reserved, self.now + 2)

    def give(self, size: int) -> None:
        self.now -= size


def test_cuda_counters_are_read_and_reset_at_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Counters()
    fake: Any = SimpleNamespace(
        max_memory_allocated=lambda: counters.peak,
        max_memory_reserved=lambda: counters.reserved,
        memory_allocated=lambda: counters.now,
        reset_peak_memory_stats=lambda: setattr(counters, "peak", counters.now),
    )
    monkeypatch.setattr(torch, "cuda", fake)
    meter = CudaMeter(keep_events=False)
    meter.enter("load")
    counters.take(100)
    counters.give(60)
    meter.enter("cast")
    counters.take(5)
    for _ in range(2):
        meter.enter("forward")
        counters.take(20)
        meter.enter("backward")
        counters.take(30)
        counters.give(50)
    meter.enter("between")
    readings, events = meter.finish()
    assert readings["load"].allocated_bytes == 100 and readings["load"].live_bytes == 40
    assert readings["forward"].allocated_bytes == 65
    assert readings["backward"].allocated_bytes == readings["training"].allocated_bytes == 95
    assert readings["training"].live_bytes == 45
    assert events == []
