"""A tape prepared for playing: for each segment what is born, what dies, and what each storage is for."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_planner.memory.records import Component
from qlora_planner.profile.tape import Segment, Tape

BIRTH, DEATH, DEATH_ELSEWHERE = range(3)
Act = tuple[int, int, int, int]  # what happens, traced storage, bytes, component's position
_POSITION = {component: index for index, component in enumerate(Component)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a storage that outlives its segment was born, and its rank among that segment's survivors of its size."""

    segment: Segment
    size: int
    rank: int

    def same_part(self, other: Origin) -> bool:
        """Whether two storages of different traced layers play the same part."""
        return (self.size, self.rank) == (other.size, other.rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Acts by segment, and the origins of storages that outlive theirs."""

    tape: Tape
    acts: dict[Segment, tuple[Act, ...]]
    origins: dict[int, Origin]


def write_script(tape: Tape, gradient_checkpointing: bool, workspace_taken: bool = False) -> Script:
    """Prepare `tape`"""
    died_in: dict[int, Segment] = {}
    for segment in tape.segments:
        for storage, size in tape.events[segment.start : segment.stop]:
            if not size:
                died_in[storage] = segment
    acts: dict[Segment, tuple[Act, ...]] = {}
    origins: dict[int, Origin] = {}
    known: set[int] = set()
    # The forward thread's cuBLAS handle may have its workspace from before training: then it is not made again.
    already = {min(tape.workspaces, default=0)} if workspace_taken else set()
    for segment in tape.segments:
        own: set[int] = set()
        ranks: dict[int, int] = {}
        found: list[Act] = []
        for storage, size in tape.events[segment.start : segment.stop]:
            if storage in already:
                continue
            if size:
                own.add(storage)
                known.add(storage)
                if died_in.get(storage) is not segment:
                    rank = ranks.get(size, 0)
                    ranks[size] = rank + 1
                    origins[storage] = Origin(segment=segment, size=size, rank=rank)
                part = _component(tape, segment, storage, died_in.get(storage), gradient_checkpointing)
                found.append((BIRTH, storage, size, _POSITION[part]))
            elif storage in own:
                found.append((DEATH, storage, 0, 0))
            elif storage in known:
                found.append((DEATH_ELSEWHERE, storage, 0, 0))
        acts[segment] = tuple(found)
    return Script(tape=tape, acts=acts, origins=origins)


def _component(tape: Tape, born: Segment, storage: int, died: Segment | None, checkpointing: bool) -> Component:
    """What a storage is for, by where it is born and where it dies."""
    if storage in tape.workspaces:
        return Component.WORKSPACE
    if born.stage == "backward" and (died is None or died.stage == "zero_grad"):
        return Component.GRADIENTS
    if born.name == "head":
        return Component.LOGITS_AND_LOSS
    outlives = died is not None and died is not born
    if checkpointing and born.stage == "forward" and outlives and born.name in ("layer", "embedding"):
        return Component.CHECKPOINTS
    return Component.ACTIVATIONS
