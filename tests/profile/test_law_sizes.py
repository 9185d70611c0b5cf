"""Sizes of tensors are solved as sums of products of a class's dimensions, or not at all."""

from __future__ import annotations

from qlora_planner.sources.laws.sizes import size_at
from tools.laws.sizes import Sizes

ROWS = [
    {"hidden_size": hidden, "heads": heads, "state": state}
    for hidden, heads, state in zip(
        (336, 216, 400, 2080, 1232, 432), (16, 48, 80, 32, 112, 64), (48, 80, 56, 112, 88, 40), strict=True
    )
]
SIZES = Sizes(("hidden_size", "heads", "state"), ROWS)


def test_a_projection_of_three_parts_is_a_sum_of_three_products() -> None:
    """As Mamba's: gate and input, groups of states, and a step for each head."""
    size = SIZES.fit([2 * 64 * row["heads"] + 16 * row["state"] + row["hidden_size"] for row in ROWS])
    assert size is not None
    assert size_at(size, {"hidden_size": 100, "heads": 3, "state": 7}) == 384 + 112 + 100


def test_a_size_that_is_no_such_sum_has_no_law() -> None:
    assert SIZES.fit([row["hidden_size"] * row["heads"] * row["state"] + 1 for row in ROWS]) is None
    assert SIZES.fit([row["hidden_size"] + at**3 for at, row in enumerate(ROWS)]) is None
