"""Where in a one-card tape FSDP2's own work falls: the marks that a playing on several cards stops at.

Everything between them a rank does as one card would: traced with torch's own `fully_shard` on a fake process group,
a step has the events of the one-card trace in their order, and those of gathers and reductions between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qlora_planner.memory.replay.adapter_casts import in_one_dtype
from qlora_planner.memory.replay.events import (
    BIRTH,
    DEATH,
    DEATH_ELSEWHERE,
    Act,
    PreparedTrace,
)
from qlora_planner.memory.replay.player import GRADIENTS
from qlora_planner.spec.trace import Segment

# Acts that are no storage's: the embedding has run; the head begins; its logits are gone; and its weight's last use.
EMBEDDED, HEAD_BEGINS, SCORED, HEAD_ENDS = range(100, 104)


TOKEN_BYTES = 8  # of an input id, the first storage of a step


def marked(script: PreparedTrace, token_bytes: int, casts: frozenset[int], widens: bool = False) -> PreparedTrace:
    """The script with marks, and without autocast's copies of adapters, which are gathered in its dtype already.

    `token_bytes` is what the embedding gives out for a token, `casts` the sizes of such copies; `widens`: adapters of
    another dtype than their base have their inputs in it, on one card.
    """
    tile = max(map(_tile_bytes, (script.acts[s] for s in script.tape.segments if _is(s, "forward", "head"))), default=0)
    acts: dict[Segment, tuple[Act, ...]] = {}
    for segment, events in script.acts.items():
        kept = tuple(_without_casts(script, segment, events, casts))
        if widens and segment.name == "layer":
            kept = tuple(in_one_dtype(kept, casts, {storage: born.size for storage, born in script.origins.items()}))
        if segment.name == "embedding" and segment.stage in ("forward", "eval"):
            tokens = next((size for kind, _, size, _ in kept if kind == BIRTH), 0) // TOKEN_BYTES
            kept = _after_first(kept, tokens * token_bytes, EMBEDDED)
        elif segment.name == "head" and segment.stage in ("forward", "eval"):
            kept = _head_begins(script, kept)
        elif _is(segment, "backward", "head"):
            kept = _scored(script, kept, tile)
        acts[segment] = kept
    return replace(script, acts=acts)


def gradient_storages(script: PreparedTrace) -> frozenset[int]:
    """Traced storages that are gradients of trained tensors."""
    return frozenset(
        storage
        for events in script.acts.values()
        for kind, storage, _, component in events
        if kind == BIRTH and component == GRADIENTS
    )


def _is(segment: Segment, stage: str, name: str) -> bool:
    return (segment.stage, segment.name) == (stage, name)


def _without_casts(
    script: PreparedTrace, segment: Segment, events: tuple[Act, ...], casts: frozenset[int]
) -> Iterator[Act]:
    """Autocast keeps a layer's copies until forward ends: nothing else of a layer but its output dies in the head."""
    for act in events:
        origin = script.origins.get(act[1])
        cached = (
            origin is not None
            and _is(origin.segment, "forward", "layer")
            and origin.size in casts
            and origin.end is not None
            and origin.end[:2] == ("forward", "head")
        )
        if not cached:
            yield act


def _mark(kind: int) -> Act:
    return (kind, 0, 0, 0)


def _after_first(events: tuple[Act, ...], size: int, mark: int) -> tuple[Act, ...]:
    """The mark behind the first birth of so many bytes or more; at the end where there is none."""
    at = next((at for at, act in enumerate(events) if act[0] == BIRTH and act[2] >= size), len(events) - 1)
    return (*events[: at + 1], _mark(mark), *events[at + 1 :])


def _outputs_of_layers(script: PreparedTrace, events: tuple[Act, ...]) -> int:
    """Where the last layer's output is let go: the final norm has read it. Zero where that cannot be seen."""
    for at, (kind, storage, _, _) in enumerate(events):
        origin = script.origins.get(storage)
        if kind == DEATH_ELSEWHERE and origin is not None and origin.segment.name == "layer":
            return at + 1
    return 0


def _head_begins(script: PreparedTrace, events: tuple[Act, ...]) -> tuple[Act, ...]:
    at = _outputs_of_layers(script, events)
    return (*events[:at], _mark(HEAD_BEGINS), *events[at:])


def _tile_bytes(events: tuple[Act, ...]) -> int:
    """The largest storage that the head makes and lets go in forward: a tile of logits, or whole ones in float32."""
    sizes = {storage: size for kind, storage, size, _ in events if kind == BIRTH}
    return max((sizes[storage] for kind, storage, _, _ in events if kind == DEATH and storage in sizes), default=0)


def _scored(script: PreparedTrace, events: tuple[Act, ...], tile: int) -> tuple[Act, ...]:
    """Backward through the head: behind the last death of a tile its loss is done, behind that of the logits' gradient,
    which is half as wide, its weight."""
    sizes = {storage: size for kind, storage, size, _ in events if kind == BIRTH}
    deaths = [
        (at, sizes.get(storage) or script.origins[storage].size)
        for at, (kind, storage, _, _) in enumerate(events)
        if kind in (DEATH, DEATH_ELSEWHERE) and (storage in sizes or storage in script.origins)
    ]
    scored = max((at for at, size in deaths if size == tile), default=-1) + 1
    ends = next((at + 1 for at, size in deaths if at >= scored and size == tile // 2), scored)
    return (*events[:scored], _mark(SCORED), *events[scored:ends], _mark(HEAD_ENDS), *events[ends:])
