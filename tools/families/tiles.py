"""Where a traced head goes tile by tile: found by the sizes of what each tile copies, on toys of three."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from qlora_planner.errors import PlannerError
from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.spec.tiles import RESTS, TILE_SIZES, TOKENS, TRACED_TILES, VOCABULARY, TileLoop
from qlora_planner.spec.trace import Tape, Term
from tools.compiling import Point

_COPY_BYTES = 2  # an element in the dtype that is computed in, bfloat16 or float16
_BEFORE_LAST = {over: (TRACED_TILES - 1) * size for over, size in TILE_SIZES.items()}


class TilesError(PlannerError):
    """Tiles of a head that are not alike."""


def scored_tokens(resolution: Resolution, batched: bool) -> tuple[Term, ...]:
    """How many tokens have a label once labels are shifted: all but the last of each row; of padded rows one is half
    empty (profiling/tracing/trainers/common.py)."""
    rows: tuple[Term, ...] = ((1, 1, (1, 1, 0)), (-1, 1, (1, 0, 0)))
    return (*rows, (-1, 2, (0, 1, 0))) if resolution.run.padding and batched else rows


def rests(dims: Mapping[str, int], scored: Sequence[Term], point: Point) -> dict[str, int]:
    """What the last of three tiles holds, by symbol, on a toy of these dimensions."""
    batch, seq, _ = point
    tokens = sum(n * batch**b * seq**s // d for n, d, (b, s, _) in scored)
    return {
        RESTS[VOCABULARY]: dims["vocab_size"] - _BEFORE_LAST[VOCABULARY], RESTS[TOKENS]: tokens - _BEFORE_LAST[TOKENS],
    }  # fmt: skip


def loops_of(tape: Tape, dims: Mapping[str, int], rest: Mapping[str, int]) -> tuple[TileLoop, ...]:
    """The loops of a toy's tape, inner ones first. Raises TilesError where a tile does other things than the next."""
    births = [(at, size) for at, (storage, size) in enumerate(tape.events) if size and storage not in tape.workspaces]
    found = {over: list(_triples(births, over, dims["hidden_size"], rest[RESTS[over]])) for over in TILE_SIZES}
    inner = [_loop(VOCABULARY, starts) for starts in found[VOCABULARY]]
    outer = [_loop(TOKENS, starts) for starts in found[TOKENS]]
    if not outer and 0 < rest[RESTS[TOKENS]] <= TILE_SIZES[TOKENS]:  # no tile of tokens copies anything of its own
        heads = [inner[at : at + TRACED_TILES] for at in range(0, len(inner), TRACED_TILES)]
        outer = [_loop(TOKENS, [loop.start for loop in loops]) for loops in heads if len(loops) == TRACED_TILES]
    for loop in (*inner, *outer):
        _proved_alike(tape, loop)
    return (*inner, *outer)


def _triples(births: Sequence[tuple[int, int]], over: str, width: int, rest: int) -> Iterator[list[int]]:
    full, last = (_COPY_BYTES * width * rows for rows in (TILE_SIZES[over], rest))
    copies = [(at, size) for at, size in births if size in (full, last)]
    for first, second, third in zip(copies, copies[1:], copies[2:], strict=False):
        if (first[1], second[1], third[1]) == (full, full, last):
            yield [first[0], second[0], third[0]]


def _loop(over: str, starts: Sequence[int]) -> TileLoop:
    first, second, last = starts
    return TileLoop.of(over, first, second, last, last + (last - second))


def _proved_alike(tape: Tape, loop: TileLoop) -> None:
    """Each tile has the same births, and the last one's deaths are the middle one's, a tile later."""
    bounds = (loop.start, loop.second, loop.last, loop.stop)
    parts = [tape.events[start:stop] for start, stop in pairwise(bounds)]
    births = [[storage for storage, size in part if size and storage not in tape.workspaces] for part in parts]
    if len({len(own) for own in births}) != 1:
        raise TilesError(f"tiles of the {loop.over} have {[len(own) for own in births]} births")
    places = [{storage: at for at, storage in enumerate(own)} for own in births]

    def told(tile: int) -> list[tuple[str, int]]:
        own, before = places[tile], places[tile - 1]
        return [
            ("birth", own[storage]) if size
            else ("own", own[storage]) if storage in own
            else ("before", before.get(storage, -storage))
            for storage, size in parts[tile]
        ]  # fmt: skip

    if told(1) != told(2):
        raise TilesError(f"the last tile of the {loop.over} does other things than the one before")
