"""How much of a long list of like cases a test goes through: a sample in fifteen minutes, or all of them.

QLORA_PLANNER_WIDE=1 pytest takes all, as the weekly hosted job does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")
WIDE = os.environ.get("QLORA_PLANNER_WIDE") == "1"


def some(cases: Sequence[_T], one_in: int) -> Sequence[_T]:
    """Every `one_in`-th of the cases, from the first; all of them in a wide run."""
    return cases if WIDE else cases[::one_in]
