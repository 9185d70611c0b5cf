"""The search for the last size that fits."""

from __future__ import annotations

import pytest

from qlora_planner.planner.limits import largest


@pytest.mark.parametrize(("most", "limit", "found"), [(640, 10_000, 640), (10_000, 1_000, 960), (63, 1_000, None)])
def test_the_last_multiple_that_fits(most: int, limit: int, found: int | None) -> None:
    assert largest(lambda size: size <= most, 64, limit) == found


def test_a_size_known_to_fit_starts_the_search_where_short_ones_are_refused() -> None:
    def fits(size: int) -> bool:
        return 512 < size <= 3_000

    assert largest(fits, 64, 100_000) is None
    assert largest(fits, 64, 100_000, known=2_048) == 2_944
    assert largest(fits, 64, 1_024, known=2_048) is None
