"""What was alive at the highest moment, by the estimate's components: the allocator's events played back.

A block belongs to a component because a tensor of the model, of its gradients or of the optimizer was seen at its
address while it was alive, or by when it was born: the rules are those of the estimate. What neither says is
`unattributed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qlora_planner.evidence import UNATTRIBUTED
from qlora_planner.measure.events import ALLOC, FREE, OOM, SEGMENT, SEGMENT_END, MemoryEvent
from qlora_planner.measure.meters.timeline import BEFORE_TRAINING, HEAD, LAYER, Timeline
from qlora_planner.memory.records import Component
from qlora_planner.record import record


@dataclass(slots=True)
class Block:
    """One allocation and its life; `death_ns` None: still alive when recording ended."""

    birth_ns: int
    size: int
    death_ns: int | None = None
    owner: str | None = None


@record
class Moment:
    """The highest moment, or that of a failed request: bytes allocated and reserved, and the blocks alive."""

    time_ns: int
    allocated_bytes: int
    reserved_bytes: int
    alive: tuple[Block, ...]


def highest_moment(events: Sequence[MemoryEvent], timeline: Timeline, *, phase: str | None = None) -> Moment | None:
    """The moment of the most allocated bytes, or of the first failed request; None without events.

    With `phase`, of that phase alone: see `qlora_planner.measure.meters.peak`.
    """
    chosen = _chosen(events, timeline, phase)
    if chosen is None:
        return None
    blocks = _blocks(events, timeline)
    last = events[chosen]
    reserved = sum(
        event.size if event.kind == SEGMENT else -event.size
        for event in events[: chosen + 1]
        if event.kind in (SEGMENT, SEGMENT_END)
    )
    alive = tuple(block for position, block, end in blocks if position <= chosen < end)
    return Moment(
        time_ns=last.time_ns,
        allocated_bytes=sum(block.size for block in alive),
        reserved_bytes=max(reserved, 0),
        alive=alive,
    )


def components_at(
    moment: Moment, timeline: Timeline, *, checkpoint_every: int | None, workspace_bytes: int
) -> dict[str, int]:
    """Bytes by component name at `moment`; allocator slack where segments were recorded.

    Of `checkpoint_every` layers the first is checkpointed, of none where it is None.
    `workspace_bytes` is the size of one cuBLAS workspace on this card.
    """
    by_component: dict[str, int] = {}
    for block in moment.alive:
        name = block.owner or _by_birth(block, moment, timeline, checkpoint_every, workspace_bytes)
        by_component[name] = by_component.get(name, 0) + block.size
    if moment.reserved_bytes:
        by_component[Component.ALLOCATOR_SLACK.value] = max(moment.reserved_bytes - moment.allocated_bytes, 0)
    order = [*(component.value for component in Component), UNATTRIBUTED]
    return {name: by_component[name] for name in order if name in by_component}


def _chosen(events: Sequence[MemoryEvent], timeline: Timeline, phase: str | None) -> int | None:
    """Position of the event after which most is allocated (in `phase`), or of the first failed request."""
    allocated = highest = 0
    position = None
    sizes: dict[int, int] = {}
    for index, event in enumerate(events):
        if event.kind == OOM:
            return index
        if event.kind == ALLOC:
            sizes[event.address] = event.size
            allocated += event.size
        elif event.kind == FREE:
            allocated -= sizes.pop(event.address, 0)
        if allocated > highest and (phase is None or timeline.phase_at(event.time_ns) == phase):
            highest, position = allocated, index
    return position


def _blocks(events: Sequence[MemoryEvent], timeline: Timeline) -> list[tuple[int, Block, int]]:
    """(position of birth, block, position of death) of every block, owners filled in as the timeline tells them."""
    ended: list[tuple[int, Block, int]] = []
    alive: dict[int, tuple[int, Block]] = {}
    owners = iter(timeline.owners)
    owned = next(owners, None)
    for index, event in enumerate(events):
        while owned is not None and owned[0] <= event.time_ns:
            _assign(owned[1].items(), alive)
            owned = next(owners, None)
        if event.kind == ALLOC:
            alive[event.address] = (index, Block(event.time_ns, event.size))
        elif event.kind == FREE and event.address in alive:
            position, block = alive.pop(event.address)
            block.death_ns = event.time_ns
            ended.append((position, block, index))
    while owned is not None:
        _assign(owned[1].items(), alive)
        owned = next(owners, None)
    return ended + [(position, block, len(events)) for position, block in alive.values()]


def _assign(owners: object, alive: dict[int, tuple[int, Block]]) -> None:
    for address, name in owners:  # type: ignore[attr-defined]
        entry = alive.get(address)
        if entry is not None and entry[1].owner is None:
            entry[1].owner = name


def _by_birth(
    block: Block, moment: Moment, timeline: Timeline, checkpoint_every: int | None, workspace_bytes: int
) -> str:
    born_at = timeline.index_at(block.birth_ns)
    stage = timeline.stages[born_at][1] if born_at >= 0 else None
    if stage is None:
        return UNATTRIBUTED
    if stage in BEFORE_TRAINING:
        # A tensor beside its cast or quantised form; what outlives that is somebody's, but nobody was seen to own it.
        passing = block.death_ns is not None and timeline.stage_at(block.death_ns) in BEFORE_TRAINING
        return Component.WORKSPACE.value if passing else UNATTRIBUTED
    if block.death_ns is None:
        return Component.WORKSPACE.value if block.size == workspace_bytes else UNATTRIBUTED
    if not any(name == HEAD for _, name in timeline.stages):
        return UNATTRIBUTED  # the layers were not found: forward cannot be told from head
    if stage == HEAD:
        return Component.LOGITS_AND_LOSS.value
    if stage == "optimizer":
        return Component.WORKSPACE.value
    if stage == "backward" or _within_backward(timeline, born_at):
        return Component.ACTIVATIONS.value
    in_this_layer = stage == LAYER and timeline.index_at(moment.time_ns) == born_at
    if in_this_layer or checkpoint_every is None or (stage == LAYER and _layer(timeline, born_at) % checkpoint_every):
        return Component.ACTIVATIONS.value
    return Component.CHECKPOINTS.value


def _layer(timeline: Timeline, index: int) -> int:
    """The number of the layer, from 0, whose stage of a forward pass this is."""
    number = -1
    while index >= 0 and timeline.stages[index][1] == LAYER:
        number, index = number + 1, index - 1
    return number


def _within_backward(timeline: Timeline, index: int) -> bool:
    """Whether a layer stage is a recomputation: the step's last mark other than a layer was backward."""
    while index >= 0 and timeline.stages[index][1] == LAYER:
        index -= 1
    return index >= 0 and timeline.stages[index][1] == "backward"
