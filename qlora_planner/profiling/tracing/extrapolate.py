"""From a cut-down model's tape to the whole model's peaks. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qlora_planner.profiling.tracing.tape import SegmentLevel, Tape, rounded

PHASES = ("prepare", "forward", "backward", "optimizer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """Highest allocated bytes of the whole model in each phase of training, and over all."""

    static: int
    prepare: int
    forward: int
    loss: int
    backward: int
    optimizer: int

    @property
    def peak(self) -> int:
        """Highest of all phases."""
        return max(self.static, self.prepare, self.forward, self.loss, self.backward, self.optimizer)


def represent(kept: Sequence[int], order: Sequence[str]) -> tuple[int, ...]:
    """For each layer of the whole model, the position among the kept ones that stands for it.

    A kept layer stands for itself; others are stood for by a kept layer of their kind that is neither first nor last.
    """
    inner: dict[str, int] = {}
    for position, index in enumerate(kept):
        ends = (0, len(order) - 1)
        if order[index] not in inner or (index not in ends and kept[inner[order[index]]] in ends):
            inner[order[index]] = position
    places = {index: position for position, index in enumerate(kept)}
    return tuple(places.get(index, inner[kind]) for index, kind in enumerate(order))


def whole_static(tape: Tape) -> int:
    """Allocator bytes of the whole model before training."""
    outside = tape.static_bytes - sum(tape.static_by_layer)
    return outside + sum(tape.static_by_layer[place] for place in represent(tape.kept, tape.layer_order))


def _birth_places(tape: Tape) -> dict[int, int]:
    """For each storage born while a layer ran, forwards or backwards, that layer's position in the trace."""
    found: dict[int, int] = {}
    for segment in tape.segments:
        if segment.name == "layer":
            for event in tape.events[segment.start : segment.stop]:
                if event.size > 0:
                    found[event.storage] = segment.layer
    return found


def _weighted(tape: Tape, level: SegmentLevel, births: Mapping[int, int], counts: Sequence[int]) -> SegmentLevel:
    """A segment outside the layers in the whole model: what layers made and it frees, it frees for every layer.

    An example are the 16-bit copies of weights that autocast keeps until the model's forward ends.
    """
    segment = level.segment
    now = top = 0
    for event in tape.events[segment.start : segment.stop]:
        if event.size > 0:
            now += rounded(event.size)
            top = max(top, now)
        else:
            place = births.get(event.storage)
            now -= rounded(-event.size) * (1 if place is None else counts[place])
    return SegmentLevel(segment=segment, start=level.start, rise=top, delta=now)


def whole_walk(tape: Tape) -> list[tuple[SegmentLevel, int]]:
    """Every segment of the whole model in order: the traced one that stands for it, and the level where it starts."""
    places = represent(tape.kept, tape.layer_order)
    counts = [places.count(place) for place in range(len(tape.kept))]
    births = _birth_places(tape)
    stages = {(stage.stage, stage.step): stage for stage in tape.whole}
    now = whole_static(tape)
    found: list[tuple[SegmentLevel, int]] = []
    levels = tape.levels()
    index = 0
    while index < len(levels):
        level = levels[index]
        segment = level.segment
        if segment.name != "layer":
            whole = stages.get((segment.stage, segment.step))
            if whole is not None:
                level = SegmentLevel(segment=segment, start=level.start, rise=whole.rise, delta=whole.delta)
            else:
                level = _weighted(tape, level, births, counts)
            found.append((level, now))
            now += level.delta
            index += 1
            continue
        stop = index
        while (
            stop < len(levels)
            and levels[stop].segment.name == "layer"
            and (levels[stop].segment.stage == segment.stage)
        ):
            stop += 1
        run: dict[int, list[SegmentLevel]] = {}
        for inner in levels[index:stop]:
            run.setdefault(inner.segment.layer, []).append(inner)
        for place in places if segment.stage == "forward" else reversed(places):
            for inner in run.get(place, ()):
                found.append((inner, now))
                now += inner.delta
        index = stop
    return found


def extrapolate(tape: Tape) -> Peaks:
    """Peak of each phase at full depth: the level at each segment's start plus the rise within it."""
    tops = dict.fromkeys(("prepare", "forward", "loss", "backward", "after", "optimizer", "zero_grad"), 0)
    now_static = whole_static(tape)
    for level, start in whole_walk(tape):
        stage = level.segment.stage
        if stage == "forward" and level.segment.name == "head":
            stage = "loss"
        tops[stage] = max(tops[stage], start + level.rise)
    return Peaks(
        static=now_static,
        prepare=tops["prepare"],
        forward=tops["forward"],
        loss=tops["loss"],
        backward=max(tops["backward"], tops["after"]),
        optimizer=max(tops["optimizer"], tops["zero_grad"]),
    )
