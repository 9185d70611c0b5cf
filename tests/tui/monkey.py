"""Random keys, for the test and for benchmarks/tui.py: every key that means something somewhere, in any order."""

from __future__ import annotations

import random
from collections.abc import Iterator

KEYS = (
    *"1234567" * 2, *"gcetpruxsfjkhlmadvbo",
    "slash", "question_mark", "escape", "escape", "enter", "enter", "tab", "shift+tab",
    "up", "down", "left", "right", "up", "down", "left", "right", "right", "left", "pagedown", "pageup", "home", "end",
    "ctrl+home", "ctrl+end", "space", "backspace", "delete", "a", "8", "minus", "plus", "ctrl+p", "q",
)  # fmt: skip


def keys(seed: int, count: int) -> Iterator[str]:
    """`count` keys of one seed."""
    chance = random.Random(seed)
    for _ in range(count):
        yield chance.choice(KEYS)
