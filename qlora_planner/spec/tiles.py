"""Loops over tiles in a tape: trl's head scores so many tokens and so much of the vocabulary at a time, and every tile
allocates again. A family is traced with three tiles and played with as many as a run has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from qlora_planner.record import record

TRACED_TILES = 3
TOKENS, VOCABULARY = "tokens", "vocabulary"
# trl 1.16.0: TOKEN_CHUNK_SIZE in kernels/chunked_logprob.py, _CHUNKED_LOGPROB_CHUNK_SIZE in trainer/utils.py.
TILE_SIZES = {TOKENS: 4096, VOCABULARY: 32768}
# The symbols of what a last tile holds.
RESTS = {TOKENS: "tokens_rest", VOCABULARY: "vocabulary_rest"}

# An event of a tape that is being unrolled: the storage, and the index of its size at its birth, None at its death.
Event = tuple[int, int | None]


@record
class TileLoop:
    """Events `[start, second)` of the first tile, `[second, last)` of the next, `[last, stop)` of the last of three."""

    over: str
    start: int
    second: int
    last: int
    stop: int

    def moved(self, at: int, by: int) -> TileLoop:
        """The same loop after `by` events were put in that end at `at`."""
        places = (edge + by if edge >= at else edge for edge in (self.start, self.second, self.last, self.stop))
        return TileLoop.of(self.over, *places)

    @classmethod
    def of(cls, over: str, start: int, second: int, last: int, stop: int) -> TileLoop:
        """The loop that these five words of a family's file say."""
        return cls(over=over, start=start, second=second, last=last, stop=stop)

    @property
    def words(self) -> tuple[str, int, int, int, int]:
        """How a family's file says it."""
        return self.over, self.start, self.second, self.last, self.stop


def tile_count(size: int, over: str) -> int:
    """How many tiles `size` tokens or rows of the vocabulary are taken in."""
    return max(1, -(-size // TILE_SIZES[over]))


def unrolled(
    codes: Sequence[int], loops: Sequence[TileLoop], counts: Mapping[str, int], once: Collection[int] = ()
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A compiled tape's events with `counts` tiles in each loop, and where each event of before lies among them (of
    those within a loop, some place in it).

    `loops`: inner ones before outer ones. `once`: sizes, counted from 1, of what is made at the first use alone and
    kept, as a library's workspace in the first tile.
    """
    events = _events(codes)
    places = list(range(len(events) + 1))
    born = max((storage for storage, _ in events), default=0)
    waiting = list(loops)
    while waiting:
        loop = waiting.pop(0)
        body, born = _body(events, loop, counts[loop.over], born, once)
        grown = len(body) - (loop.stop - loop.start)
        events[loop.start : loop.stop] = body
        waiting = [other.moved(loop.stop, grown) for other in waiting]
        places = [event + grown if event >= loop.stop else event for event in places]
    return _codes(events), tuple(places)


def _body(events: list[Event], loop: TileLoop, count: int, born: int, once: Collection[int]) -> tuple[list[Event], int]:
    """The events of a loop of `count` tiles; renames in `events` what dies after it."""
    first, middle, last = (
        events[loop.start : loop.second], events[loop.second : loop.last], events[loop.last : loop.stop],
    )  # fmt: skip
    births = [
        [storage for storage, size in part if size is not None and size not in once] for part in (first, middle, last)
    ]
    if count == 1:
        # The first tile of a loop alone, with what the last one holds: nothing of a tile before it dies in it.
        sizes = iter([size for _, size in last if size is not None])
        alone = [(storage, size if size is None or size in once else next(sizes)) for storage, size in first]
        _rename(events, loop.stop, dict(zip((*births[1], *births[2]), births[0] * 2, strict=True)))
        return alone, born
    body, before = list(first), births[0]
    for _ in range(count - TRACED_TILES + 1):
        own = list(range(born + 1, born + 1 + len(before)))
        born += len(before)
        names = dict(zip((*births[0], *births[1]), (*before, *own), strict=True))
        body += [(names.get(storage, storage), size) for storage, size in middle]
        before = own
    names = dict(zip(births[1], before, strict=True))
    body += [(names.get(storage, storage), size) for storage, size in last]
    _rename(events, loop.stop, names)
    return body, born


def _rename(events: list[Event], start: int, names: Mapping[int, int]) -> None:
    for at in range(start, len(events)):
        storage, size = events[at]
        events[at] = (names.get(storage, storage), size)


def _events(codes: Sequence[int]) -> list[Event]:
    events: list[Event] = []
    born = 0
    for code in codes:
        if code > 0:
            born += 1
        events.append((born, code) if code > 0 else (-code, None))
    return events


def _codes(events: Sequence[Event]) -> tuple[int, ...]:
    numbers: dict[int, int] = {}
    codes = []
    for storage, size in events:
        if size is None:
            codes.append(-numbers[storage])
        else:
            numbers[storage] = len(numbers) + 1
            codes.append(size)
    return tuple(codes)
