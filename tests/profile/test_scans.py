"""Rows that go chunk by chunk: a tape is that of a row with as many chunks, whatever number it was traced with."""

from __future__ import annotations

import pytest

from qlora_planner.spec.scans import ScanLoop, fewest_chunks, longer, place_after, rescanned
from qlora_planner.spec.trace import CompiledTape, Segment, Tape
from tools.compiling import NotPolynomialError
from tools.families.scans import CHUNKS, at_chunks

LAYER = Segment(stage="forward", name="layer", layer=0, step=0, micro_step=0, start=1, stop=0)


def scanned(chunks: int, odd: int = -1) -> Tape:
    """A row of so many chunks as a linear attention goes through it: each keeps what its backward takes, last to first,
    and hands a state on; chunk number `odd` makes one storage more."""
    events: list[tuple[int, int]] = [(1, 100)]
    born = 1

    def make(size: int) -> int:
        nonlocal born
        born += 1
        events.append((born, size))
        return born

    state, kept = make(64), []
    for chunk in range(chunks):
        read, update = make(5), make(7)
        own = make(11), make(13), make(17)
        if chunk == odd:
            make(19)
        events.append((read, 0))
        fresh = make(64)
        events += [(update, 0), (state, 0)]
        kept.append(own)
        state = fresh
    stop = len(events)
    grad = make(64)
    for own in reversed(kept):
        parts = make(23), make(29)
        events += [(each, 0) for each in own]
        fresh = make(64)
        events += [(grad, 0), (parts[1], 0), (parts[0], 0)]
        grad = fresh
    events += [(state, 0), (grad, 0), (1, 0)]
    segments = (LAYER.at(1, stop), LAYER.at(stop, len(events)))
    return Tape(events=tuple(events), segments=segments, places=(), kept=(), workspaces=frozenset())


def numbered(tape: Tape) -> CompiledTape:
    return CompiledTape.of(tape, "any")


@pytest.mark.parametrize("chunks", [8, 11, 12, 13, 40])
def test_a_tape_of_any_chunks_is_found_again_in_one_of_twelve(chunks: int) -> None:
    few, loops = at_chunks(scanned(chunks), chunks)
    assert numbered(few) == numbered(scanned(CHUNKS))
    assert [loop.length for loop in loops] == [9, 9]
    back = rescanned(numbered(few).events, loops, chunks - CHUNKS)
    assert back == numbered(scanned(chunks)).events


def test_what_lies_in_no_loop_keeps_its_place() -> None:
    few, loops = at_chunks(scanned(16), 16)
    ends = [place_after(each.stop, loops, 4) for each in few.segments]
    assert ends == [each.stop for each in scanned(16).segments]
    assert longer(longer(loops, 4), -4) == loops


def test_a_chunk_that_does_more_than_the_others_is_no_tape_of_any_number() -> None:
    with pytest.raises(NotPolynomialError, match="loops over 30 chunks do not all do the same"):
        at_chunks(scanned(30, odd=28), 30)


def test_a_row_needs_chunks_enough_for_what_each_end_does_otherwise() -> None:
    assert fewest_chunks((ScanLoop.of(3, 9, 11), ScanLoop.of(200, 73, 9)), 12) == 5
