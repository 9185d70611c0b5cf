"""Loops over tiles in a tape: played with another number of tiles, storages are born and die as the head would do."""

from __future__ import annotations

import pytest

from qlora_planner.spec.tiles import TILE_SIZES, TOKENS, VOCABULARY, TileLoop, tile_count, unrolled

FULL, REST, HIDDEN, HIDDEN_REST, WORKSPACE, LOSS = 1, 2, 3, 4, 5, 6


def head(token_tiles: int, vocabulary_tiles: int) -> tuple[int, ...]:
    """What trl's backward loop does, written as that loop: a tile's copy is dropped when the next is bound."""
    codes: list[int] = []
    born = 0
    kept: dict[str, int] = {}

    def bind(name: str, size: int) -> None:
        nonlocal born
        codes.append(size)
        born += 1
        if name in kept:
            codes.append(-kept[name])
        kept[name] = born

    for token in range(token_tiles):
        bind("hidden", HIDDEN if token < token_tiles - 1 else HIDDEN_REST)
        for tile in range(vocabulary_tiles):
            bind("weight", FULL if tile < vocabulary_tiles - 1 else REST)
            if token == tile == 0:
                bind("workspace", WORKSPACE)
    bind("loss", LOSS)
    codes += [-kept["weight"], -kept["hidden"], -kept["loss"]]
    return tuple(codes)


def loops() -> list[TileLoop]:
    """Where the tiles of `head(3, 3)` begin: 1 + (1 + 1 + 2 + 2) events, then twice 2 + (2 + 2 + 2)."""
    inner = [TileLoop.of(VOCABULARY, 1, 3, 5, 7)]
    inner += [TileLoop.of(VOCABULARY, start, start + 2, start + 4, start + 6) for start in (9, 17)]
    return [*inner, TileLoop.of(TOKENS, 0, 7, 15, 23)]


@pytest.mark.parametrize("tokens", [1, 2, 3, 5])
@pytest.mark.parametrize("vocabulary", [1, 2, 3, 8])
def test_a_head_of_three_tiles_is_played_with_any_number(tokens: int, vocabulary: int) -> None:
    counts = {TOKENS: tokens, VOCABULARY: vocabulary}
    events, places = unrolled(head(3, 3), loops(), counts, {WORKSPACE})
    assert events == head(tokens, vocabulary)
    assert places[0] == 0
    assert places[-1] == len(events)


def test_tiles_are_counted_up_to_the_last_row_that_fills_one() -> None:
    size = TILE_SIZES[TOKENS]
    assert [tile_count(tokens, TOKENS) for tokens in (1, size, size + 1, 2 * size)] == [1, 1, 2, 2]
