"""The allocator simulation against allocator histories recorded on an H200, and against its own laws."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_planner.memory.allocator.caching import Block, CachingAllocator, OutOfMemory, block_bytes, segment_bytes
from qlora_planner.memory.allocator.expandable import make_allocator
from qlora_planner.memory.allocator.native import native_memory

HISTORIES = sorted((Path(__file__).parents[1] / "data" / "histories").glob("*.json.gz"))


def history(path: Path) -> dict[str, Any]:
    """A recorded run: sizes allocated in order, `-1 - n` where allocation n is freed, 0 where the cache was emptied."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return dict(json.load(file))


@pytest.mark.parametrize("compiled", [False, True], ids=["python", "compiled"])
@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.name.split(".")[0])
def test_replays_recorded_histories(path: Path, compiled: bool) -> None:
    recorded = history(path)
    memory = native_memory(None) if compiled else CachingAllocator()
    if memory is None:
        pytest.skip("nothing is compiled here")
    memory.free(memory.malloc(512))
    blocks: dict[int, Block | None] = {}
    marks = {name: (live, peak, reserved) for name, live, peak, reserved in recorded["marks"]}
    for phase in ("load", "prepare", "peft", "train"):
        if phase == "train":
            memory.empty_cache()
            memory.reset_peaks()
        for entry in recorded[phase]:
            if entry > 0:
                blocks[len(blocks)] = memory.malloc(entry)
            elif entry < 0:
                memory.free(blocks[-1 - entry])
            else:
                memory.empty_cache()
        assert memory.allocated == marks["end" if phase == "train" else phase][0]
    assert memory.peak_allocated == recorded["measured"]["train_peak"]
    # Segments' real addresses decide between equal blocks, which a simulation cannot know.
    assert abs(memory.peak_reserved / recorded["measured"]["train_reserved"] - 1) < 0.01


def test_histories_are_there() -> None:
    assert len(HISTORIES) == 4


SIZES = st.lists(st.tuples(st.integers(1, 64 << 20), st.booleans()), min_size=1, max_size=60)


@given(SIZES, st.booleans())
@settings(max_examples=150, deadline=None)
def test_laws(steps: list[tuple[int, bool]], expandable: bool) -> None:
    memory = make_allocator("expandable_segments:True" if expandable else None)
    alive: list[tuple[int, Block]] = []
    for size, drop in steps:
        block = memory.malloc(size)
        assert block is not None
        assert block.size >= size
        alive.append((size, block))
        if drop and len(alive) > 1:
            memory.free(alive.pop(0)[1])
        assert memory.allocated == sum(block.size for _, block in alive)
        assert memory.allocated <= memory.reserved <= memory.peak_reserved
        spans = sorted((block.address, block.address + block.size) for _, block in alive)
        assert all(a[1] <= b[0] for a, b in pairwise(spans)), "blocks overlap"
    for _, block in alive:
        memory.free(block)
    memory.empty_cache()
    assert memory.allocated == 0
    assert memory.reserved == 0


@given(SIZES)
@settings(max_examples=60, deadline=None)
def test_what_fits_n_fits_more(steps: list[tuple[int, bool]]) -> None:
    free_run = CachingAllocator()
    for size, drop in steps:
        block = free_run.malloc(size)
        if drop:
            free_run.free(block)
    for limit in (free_run.peak_reserved, free_run.peak_reserved + (1 << 30)):
        capped = CachingAllocator(limit_bytes=limit)
        for size, drop in steps:
            block = capped.malloc(size)
            if drop:
                capped.free(block)


def test_a_limit_is_kept_and_names_the_request() -> None:
    memory = CachingAllocator(limit_bytes=64 << 20)
    first = memory.malloc(40 << 20)
    with pytest.raises(OutOfMemory) as failure:
        memory.malloc(30 << 20)
    assert failure.value.requested_bytes == 30 << 20
    memory.free(first)
    assert memory.malloc(60 << 20) is not None, "the cache is given back before the limit is called reached"


@pytest.mark.parametrize(
    ("size", "block", "segment"),
    [(1, 512, 2 << 20), (513, 1024, 2 << 20), (1 << 20, 1 << 20, 2 << 20), ((1 << 20) + 1, (1 << 20) + 512, 20 << 20),
     (10 << 20, 10 << 20, 10 << 20), ((10 << 20) + 1, (10 << 20) + 512, 12 << 20)],
)  # fmt: skip
def test_rounding(size: int, block: int, segment: int) -> None:
    assert block_bytes(size) == block
    assert segment_bytes(size) == segment
