"""Float32 adapters under FSDP2: one card copies their inputs, and a rank that gathers in 16 bits does not."""

from __future__ import annotations

import pytest

from qlora_planner.memory.records import Component
from qlora_planner.memory.replay.adapter_casts import in_one_dtype
from qlora_planner.memory.replay.events import BIRTH, DEATH, Act
from qlora_planner.memory.replay.player import COMPONENTS, GRADIENTS

ACTIVATIONS = COMPONENTS.index(Component.ACTIVATIONS)
CAST, INPUT = 256, 16_384  # a narrow copy of an adapter, and its input in 16 bits


def born(storage: int, size: int, component: int = ACTIVATIONS) -> Act:
    return (BIRTH, storage, size, component)


def dead(storage: int) -> Act:
    return (DEATH, storage, 0, 0)


def most(events: list[Act]) -> int:
    """The highest sum of what is alive."""
    sizes: dict[int, int] = {}
    high = 0
    for kind, storage, size, _ in events:
        if kind == BIRTH:
            sizes[storage] = size
        else:
            del sizes[storage]
        high = max(high, sum(sizes.values()))
    return high


# lora_A(dropout(x.float())) under autocast, and its backward, in the order of a trace.
DROPPED = [
    born(1, 2 * INPUT), born(2, INPUT // 2), born(3, 2 * INPUT), born(4, CAST), born(5, INPUT), born(6, 64), dead(3),
    dead(1),
    born(7, INPUT), dead(5), dead(4), born(8, 2 * INPUT), dead(7), born(9, 2 * CAST, GRADIENTS), born(10, 2 * INPUT),
    dead(2), dead(8), born(11, INPUT), dead(10), dead(6), dead(11), dead(9),
]  # fmt: skip
PLAIN = [
    born(1, 2 * INPUT), born(4, CAST), born(5, INPUT), born(6, 64), dead(1),
    born(7, INPUT), dead(5), dead(4), born(8, 2 * INPUT), dead(7), born(9, 2 * CAST, GRADIENTS), born(11, INPUT),
    dead(8), dead(6), dead(11), dead(9),
]  # fmt: skip


@pytest.mark.parametrize(
    ("events", "gone", "high"),
    [(DROPPED, {1, 3, 8, 10}, 2 * INPUT + INPUT // 2 + 2 * CAST + 64), (PLAIN, {1, 8}, 2 * INPUT + CAST + 64)],
    ids=["with dropout", "without dropout"],
)
def test_no_wide_copy_of_an_input_or_its_gradient_is_left(events: list[Act], gone: set[int], high: int) -> None:
    kept = in_one_dtype(events, frozenset({CAST}), {})
    assert {storage for _, storage, _, _ in events} - {storage for _, storage, _, _ in kept} == gone
    assert most(kept) == high < most(events)


def test_dropout_reads_a_gradient_before_it_goes() -> None:
    kept = in_one_dtype(DROPPED, frozenset({CAST}), {})
    read = kept.index(born(11, INPUT))
    assert kept[read + 1] == dead(7) and kept.index(dead(2)) > read


def test_a_norm_in_float32_stays_as_it_is() -> None:
    norm = [
        born(1, 2 * INPUT), born(2, 2 * INPUT), born(3, 16), dead(2), born(4, 2 * INPUT), born(5, INPUT), dead(4),
        dead(3), born(6, INPUT), dead(5), born(7, 2 * INPUT), dead(6), born(8, 2 * INPUT), dead(7),
        born(9, INPUT), dead(8),
    ]  # fmt: skip
    assert in_one_dtype(norm, frozenset({CAST}), {}) == norm
