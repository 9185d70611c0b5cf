"""Loops over chunks in a tape: linear attention's scan makes and frees the same for every chunk of a row, forward and
backward. A family is traced with so many chunks and played with as many as a run's rows have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qlora_planner.record import record

# Iterations at either end of a loop that do otherwise than those between. `tools/families/scans.py` proves that it is
# no more on tapes of other lengths, event by event.
_EDGE = 1
# An iteration of a loop, and the event in it: what a storage that is born there is told by.
_Place = tuple[int, int, int]


@record
class ScanLoop:
    """`count` iterations of `length` events each, from event `start` on: as many more as a row has more chunks."""

    start: int
    length: int
    count: int

    @classmethod
    def of(cls, start: int, length: int, count: int) -> ScanLoop:
        """The loop that these three words of a family's file say."""
        return cls(start=start, length=length, count=count)

    @property
    def words(self) -> tuple[int, int, int]:
        """How a family's file says it."""
        return self.start, self.length, self.count

    @property
    def stop(self) -> int:
        """The event after the last one."""
        return self.start + self.length * self.count

    def moved(self, start: int, more: int = 0) -> ScanLoop:
        """The same loop at another place, with so many more iterations."""
        return ScanLoop.of(start, self.length, self.count + more)


def fewest_chunks(loops: Sequence[ScanLoop], chunks: int) -> int:
    """The fewest chunks that a tape traced with `chunks` can be played with."""
    return max((chunks - loop.count for loop in loops), default=0) + 2 * _EDGE


def longer(loops: Sequence[ScanLoop], more: int) -> tuple[ScanLoop, ...]:
    """The loops where a row has so many more chunks (fewer, below zero)."""
    moved: list[ScanLoop] = []
    by = 0
    for loop in loops:
        moved.append(loop.moved(loop.start + by, more))
        by += loop.length * more
    return tuple(moved)


def place_after(event: int, loops: Sequence[ScanLoop], more: int) -> int:
    """Where an event that lies in no loop lies among those of `rescanned`."""
    return event + more * sum(loop.length for loop in loops if loop.stop <= event)


def rescanned(codes: Sequence[int], loops: Sequence[ScanLoop], more: int) -> tuple[int, ...]:
    """A compiled tape's events with so many more iterations in each loop (fewer, below zero).

    An iteration between the edges does what any other does, to what itself, its neighbour, or the iteration of another
    loop that lies as far from that loop's end made: the backward takes chunks from the last to the first.
    """
    born, within = _born(codes, loops)
    numbers: dict[int | _Place, int] = {}
    events: list[int] = []

    def put(code: int, key: int | _Place) -> None:
        if code > 0:
            numbers[key] = len(numbers) + 1
            events.append(code)
        else:
            events.append(-numbers[key])

    def outside(storage: int) -> int | _Place:
        loop, iteration, at = within.get(storage, (-1, 0, 0))
        if loop < 0:
            return storage
        return loop, iteration + (0 if 2 * iteration < loops[loop].count else more), at

    def inside(number: int, iteration: int, like: int, at: int) -> int | _Place:
        event = loops[number].start + like * loops[number].length + at
        freed = within.get(-codes[event])
        if freed is None:
            return -codes[event]
        loop, other, offset = freed
        if loop == number:
            return loop, other + iteration - like, offset
        if like != _EDGE:
            return outside(-codes[event])
        step = within[-codes[event + loops[number].length]][1] - other
        return loop, other + step * (iteration - like) + (more if step < 0 else 0), offset

    at = 0
    for number, loop in enumerate(loops):
        for event in range(at, loop.start):
            put(codes[event], born[event] or outside(-codes[event]))
        for iteration, like in _likes(loop.count, more):
            for offset in range(loop.length):
                code = codes[loop.start + like * loop.length + offset]
                put(code, (number, iteration, offset) if code > 0 else inside(number, iteration, like, offset))
        at = loop.stop
    for event in range(at, len(codes)):
        put(codes[event], born[event] or outside(-codes[event]))
    return tuple(events)


def _likes(count: int, more: int) -> Iterator[tuple[int, int]]:
    """Each iteration of a loop with so many more, and the one before that it is like."""
    for iteration in range(count + more):
        if iteration >= count + more - _EDGE:
            yield iteration, iteration - more
        else:
            yield iteration, min(iteration, _EDGE)


def _born(codes: Sequence[int], loops: Sequence[ScanLoop]) -> tuple[list[int], dict[int, _Place]]:
    """The storage that each event makes, 0 where it frees one; and where in a loop a storage is born."""
    storages: list[int] = []
    number = 0
    for code in codes:
        number += code > 0
        storages.append(number if code > 0 else 0)
    within = {
        storages[event]: (at, *divmod(event - loop.start, loop.length))
        for at, loop in enumerate(loops)
        for event in range(loop.start, loop.stop)
        if storages[event]
    }
    return storages, within
