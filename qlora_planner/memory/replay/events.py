"""A tape prepared for playing: for each segment what is born, what dies, and what each storage is for."""

from __future__ import annotations

from qlora_planner.memory.records import Component
from qlora_planner.record import record
from qlora_planner.spec.trace import Segment, Tape

BIRTH, DEATH, DEATH_ELSEWHERE, BIRTH_ON_HOST, BIRTH_STREAMED = range(5)
Act = tuple[int, int, int, int]  # what happens, traced storage, bytes, component's position
HOST = -1  # stands in for a component's position: not on the device
OUTSIDE = -1  # stands in for a layer of the whole model
# Where a storage that dies away from its segment was born: outside the layers, in every layer of one part, in the layer
# that is played or beside it, or in one layer whatever is played. SHARED: outside, and it dies with one layer alone.
EVERY_OUTSIDE, SHARED, ALL_OF_A_PART, BESIDE, ONE_LAYER = range(5)
_POSITION = {component: index for index, component in enumerate(Component)}


@record
class Origin:
    """Where a storage that outlives its segment was born, where it ends, and its rank among that segment's survivors
    of its size and end.

    `end` is the stage and name of the segment in which it dies and how many layers away that is, 2 for more than one;
    None where it stays. Survivors that end in the neighbour must not be mixed up with those kept for much longer.
    """

    segment: Segment
    size: int
    rank: int
    end: tuple[str, str, int] | None

    def same_part(self, other: Origin) -> bool:
        """Whether two storages of different traced layers play the same part."""
        return (self.size, self.rank, self.end) == (other.size, other.rank, other.end)


@record
class PreparedTrace:
    """Acts by segment, and the origins of storages that outlive theirs."""

    tape: Tape
    acts: dict[Segment, tuple[Act, ...]]
    origins: dict[int, Origin]


def prepare_trace(
    tape: Tape, gradient_checkpointing: bool, workspace_taken: bool = False, checkpoint_every: int | None = None
) -> PreparedTrace:
    """Prepare `tape`, of a run that checkpoints every `checkpoint_every`-th layer (None: each)."""
    died_in: dict[int, Segment] = {}
    for segment in tape.segments:
        for storage, size in tape.events[segment.start : segment.stop]:
            if not size:
                died_in[storage] = segment
    acts: dict[Segment, tuple[Act, ...]] = {}
    origins: dict[int, Origin] = {}
    born: set[int] = set()
    # The forward thread's cuBLAS handle may have its workspace from before training: then it is not made again.
    already = {first_handle(tape)} if workspace_taken else set()
    for segment in tape.segments:
        own: set[int] = set()
        ranks: dict[tuple[int, tuple[str, str, int] | None], int] = {}
        events: list[Act] = []
        for storage, size in tape.events[segment.start : segment.stop]:
            if storage in already:
                continue
            if size:
                own.add(storage)
                born.add(storage)
                if died_in.get(storage) is not segment:
                    end = _end(segment, died_in.get(storage))
                    rank = ranks.get((size, end), 0)
                    ranks[size, end] = rank + 1
                    origins[storage] = Origin(segment=segment, size=size, rank=rank, end=end)
                inside = (
                    checkpoint_every is not None
                    and segment.name == "layer"
                    and tape.kept[segment.layer] % checkpoint_every > 0
                )
                checkpoints = gradient_checkpointing and not inside
                part = _component(tape, segment, storage, died_in.get(storage), checkpoints)
                if storage in tape.on_host:
                    events.append((BIRTH_ON_HOST, storage, size, HOST))
                else:
                    kind = BIRTH_STREAMED if storage in tape.streamed else BIRTH
                    events.append((kind, storage, size, _POSITION[part]))
            elif storage in own:
                events.append((DEATH, storage, 0, 0))
            elif storage in born:
                events.append((DEATH_ELSEWHERE, storage, 0, 0))
        acts[segment] = tuple(events)
    return PreparedTrace(tape=tape, acts=acts, origins=origins)


def whereabouts(tape: Tape, origin: Origin, segment: Segment) -> tuple[int, int]:
    """Where a storage that dies in `segment` was born, and the part, the distance or the layer that this is about."""
    born = origin.segment
    if born.name != "layer":
        # What layers share, such as a mask, dies with the last that needs it: backward, the first of its part.
        shared = (born.stage, born.name, segment.stage, segment.name) == ("forward", "embedding", "backward", "layer")
        return (SHARED, tape.places.index(segment.layer)) if shared else (EVERY_OUTSIDE, OUTSIDE)
    if segment.name != "layer":
        return ALL_OF_A_PART, born.layer
    offset = born.layer - segment.layer
    return (BESIDE, offset) if abs(offset) <= 1 else (ONE_LAYER, tape.kept[born.layer])


def _end(born: Segment, died: Segment | None) -> tuple[str, str, int] | None:
    if died is None:
        return None
    away = died.layer - born.layer if born.name == died.name == "layer" else 0
    return died.stage, died.name, away if abs(away) <= 1 else 2


def first_handle(tape: Tape) -> int:
    """The storage of the forward thread's cuBLAS workspace, the first of full size; 0 where no product was traced.

    Where products with a bias come first, the small buffer of fused bias kernels is older.
    """
    sizes = {storage: size for storage, size in tape.events if size and storage in tape.workspaces}
    return next((storage for storage, size in sizes.items() if size == max(sizes.values())), 0)


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
