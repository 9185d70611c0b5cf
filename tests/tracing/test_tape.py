"""The tape and its extrapolation, on hand-made tapes."""

from __future__ import annotations

import json

from qlora_planner.profiling.tracing.extrapolate import extrapolate, represent, whole_static
from qlora_planner.profiling.tracing.tape import Event, Segment, Tape, rounded

KIB = 1024


def _segment(stage: str, name: str, layer: int, start: int, stop: int) -> Segment:
    return Segment(stage=stage, name=name, layer=layer, step=0, micro_step=0, start=start, stop=stop)


def _tape(depth: int) -> Tape:
    """Each layer keeps 4 KiB and borrows 16 KiB while it runs; the head borrows 8 KiB; backward frees what is kept."""
    events: list[Event] = []
    segments: list[Segment] = []
    kept = range(depth) if depth <= 3 else (0, 1, depth - 1)
    identity = 100

    def add(stage: str, name: str, layer: int, *sizes: tuple[int, int]) -> None:
        start = len(events)
        events.extend(Event(storage=storage, size=size) for storage, size in sizes)
        segments.append(_segment(stage, name, layer, start, len(events)))

    held = {}
    for place in range(len(kept)):
        identity += 2
        held[place] = identity
        scratch = identity + 1
        add("forward", "layer", place, (identity, 4 * KIB), (scratch, 16 * KIB), (scratch, -16 * KIB))
    add("forward", "head", -1, (1, 8 * KIB), (1, -8 * KIB))
    for place in reversed(range(len(kept))):
        add("backward", "layer", place, (2, 32 * KIB), (2, -32 * KIB), (held[place], -4 * KIB))
    return Tape(
        static=(Event(storage=0, size=100 + len(kept) * KIB),),
        events=tuple(events),
        segments=tuple(segments),
        layer_kinds=("a",) * len(kept),
        layer_order=("a",) * depth,
        kept=tuple(kept),
        static_by_layer=(KIB,) * len(kept),
    )


def test_sizes_round_up_to_the_allocators_unit() -> None:
    assert [rounded(size) for size in (0, 1, 512, 513)] == [0, 512, 512, 1024]


def test_a_tape_survives_json() -> None:
    tape = _tape(3)
    assert Tape.from_dict(json.loads(json.dumps(tape.to_dict()))) == tape


def test_layers_are_stood_for_by_an_inner_layer_of_their_kind() -> None:
    assert represent((0, 1, 4), "aaaaa") == (0, 1, 1, 1, 2)
    assert represent((0, 1, 2, 5), ("a", "a", "b", "b", "a", "a")) == (0, 1, 2, 2, 1, 3)


def test_depth_adds_what_each_layer_keeps() -> None:
    depth = 10
    peaks = extrapolate(_tape(depth))
    static = whole_static(_tape(depth))
    assert static == rounded(100 + 3 * KIB) - 3 * KIB + depth * KIB
    assert peaks.forward == static + depth * 4 * KIB + 16 * KIB
    assert peaks.loss == static + depth * 4 * KIB + 8 * KIB
    assert peaks.backward == static + depth * 4 * KIB + 32 * KIB
    assert peaks.peak == peaks.backward
