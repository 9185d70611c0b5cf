"""Which layers of a model a trace keeps, and which of them stands for each layer of the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

MOST_KEPT = 24
# Models of so few layers are traced whole.
_WHOLE = 4


def kept_positions(kinds: Sequence[str], also: Sequence[int] = (), most: int = MOST_KEPT) -> tuple[int, ...]:
    """The first and last layer and one inner layer of each kind, and `also` others; `kinds`: the kind of each layer."""
    depth = len(kinds)
    if depth <= _WHOLE:
        return tuple(range(depth))
    kept = {0, depth - 1, *also}
    for kind in dict.fromkeys(kinds):
        inner = [index for index in range(1, depth - 1) if kinds[index] == kind]
        kept |= set(inner[:1])
    return tuple(sorted(kept)[:most])


def represent(kept: Sequence[int], kinds: Sequence[str]) -> tuple[int, ...]:
    """For each layer of the whole model, the position among the kept ones that stands for it.

    A kept layer stands for itself; others are stood for by a kept layer of their kind that is neither first nor last.
    """
    last = len(kinds) - 1
    inner: dict[str, int] = {}
    for position, index in enumerate(kept):
        before = inner.get(kinds[index])
        if before is None or (0 < index < last and kept[before] in (0, last)):
            inner[kinds[index]] = position
    positions = {index: position for position, index in enumerate(kept)}
    return tuple(positions.get(index, inner[kind]) for index, kind in enumerate(kinds))


def bridged(kept: Sequence[int], flags: Sequence[bool | None]) -> tuple[int, ...]:
    """`kept` with as few layers more as it takes for each kept layer to follow one that is checkpointed as the layer
    before it in the whole model is, and likewise to come before such a one; `flags`: whether each layer is."""
    whole = set(kept)
    for first, last in pairwise(kept):
        steps = ((i, j) for i in range(last - first) for j in range(last - first - i))
        matching = (
            (i, j)
            for i, j in sorted(steps, key=sum)
            if flags[first + i : first + i + 2] == flags[last - j - 1 : last - j + 1]
        )
        after, before = next(matching)
        whole |= {*range(first + 1, first + after + 1), *range(last - before, last)}
    return tuple(sorted(whole))
