"""The order in which a tape's segments are played at the whole model's depth, and the phases that they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from qlora_planner.catalog.trainers import DIVERGENCE, PASSES, REFERENCE, TrainerRow
from qlora_planner.memory.replay.events import (
    ALL_OF_A_PART,
    BESIDE,
    OUTSIDE,
    SHARED,
    Origin,
    whereabouts,
)
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import PREFILL, SCORE, TOKENS, CompiledTape, Segment, Tape

# Stages that belong to a phase of another name.
_PHASES = {
    "after": "backward", "zero_grad": "optimizer", DIVERGENCE: REFERENCE, "precompute": REFERENCE, SCORE: REFERENCE,
    **dict.fromkeys(TOKENS, PREFILL),
}  # fmt: skip
_MICRO_BATCH = ("forward", *PASSES, "backward", "after")


def origin_layers(tape: Tape, origin: Origin, segment: Segment, layer: int) -> Iterable[int]:
    """Of which layers of the whole model a storage dies in `segment`, played for `layer`, that was born before it."""
    rule, argument = whereabouts(tape, origin, segment)
    if rule == SHARED:
        return (OUTSIDE,) if argument == layer else ()
    if rule == ALL_OF_A_PART:
        return [whole for whole, part in enumerate(tape.places) if part == argument]
    return (layer + argument if rule == BESIDE else argument,)


def frees_cache(segment: Segment, run: RunConfig, trainer: TrainerRow, *, first: bool) -> bool:
    """Whether the trainer gives the allocator's cache back before this segment, `first` if it is of the first step.

    trl's activation offloading does before each forward where bitsandbytes is loaded; a trainer whose
    `torch_empty_cache_steps` is set does between forward and backward of step 0 (transformers' `training_step`). It
    does again every so many steps, which reserves nothing that the first time did not.
    """
    begun = segment.stage, segment.name
    if begun == ("forward", "embedding"):
        return run.activation_offloading
    return first and trainer.frees_cache_before_backward and begun == ("backward", "head")


def left_out(segment: Segment, *, evaluates: bool) -> bool:
    """Whether a round of steps goes without this segment: what came before training, and an evaluation that comes with
    a later round."""
    return segment.stage == "precompute" or (segment.stage == "eval" and not evaluates)


def walk(tape: Tape | CompiledTape) -> list[tuple[Segment, int]]:
    """Every segment of the whole model in order, with the layer of the whole model that plays it."""
    segments = tape.segments
    return [(segments[number], layer) for number, layer in _walked(segments, tape.places)]


@lru_cache(maxsize=64)  # a plan walks the same tape at many sizes
def _walked(segments: tuple[Segment, ...], places: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The same by the numbers of segments."""
    order: list[tuple[int, int]] = []
    index = 0
    while index < len(segments):
        segment = segments[index]
        if segment.name != "layer":
            order.append((index, OUTSIDE))
            index += 1
            continue
        stop = index
        while stop < len(segments) and segments[stop].name == "layer" and segments[stop].stage == segment.stage:
            stop += 1
        parts: dict[int, list[int]] = {}
        for number in range(index, stop):
            parts.setdefault(segments[number].layer, []).append(number)
        layers = range(len(places) - 1, -1, -1) if segment.stage == "backward" else range(len(places))
        order += [(number, whole) for whole in layers for number in parts.get(places[whole], ())]
        index = stop
    return tuple(order)


def accumulated(tape: Tape | CompiledTape) -> list[tuple[Segment, int]]:
    """The same with every micro-batch twice before the optimizer's step."""
    order: list[tuple[Segment, int]] = []
    micro_batch: list[tuple[Segment, int]] = []
    for segment, layer in walk(tape):
        if segment.stage in _MICRO_BATCH:
            micro_batch.append((segment, layer))
        elif micro_batch:
            order += micro_batch
            micro_batch = []
        order.append((segment, layer))
    return order + micro_batch


def phase_of(segment: Segment) -> str:
    """The phase of an estimate that a segment belongs to."""
    if segment.stage == "forward":
        return "loss" if segment.name == "head" else "forward"
    return _PHASES.get(segment.stage, segment.stage)
