"""Taking turns on a card that several measuring processes share: they load side by side and step one at a time.

A campaign names one lock file in QLORA_PLANNER_TURNS. Loading holds it shared, stepping alone, so that a step is timed
while nothing else runs on the card. Without the variable nobody waits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "QLORA_PLANNER_TURNS"
# In a measurement's notes: its steps were timed while no process of the campaign used the card.
EXCLUSIVE_NOTE = "timing: exclusive"


def takes_turns() -> bool:
    """Whether a lock file is named."""
    return bool(os.environ.get(VARIABLE))


@contextmanager
def loading() -> Iterator[None]:
    """Beside others that load, and while nobody steps."""
    with _held(alone=False):
        yield


@contextmanager
def stepping() -> Iterator[None]:
    """While nobody else loads or steps."""
    with _held(alone=True):
        yield


@contextmanager
def _held(*, alone: bool) -> Iterator[None]:
    path = os.environ.get(VARIABLE)
    if not path:
        yield
        return
    import fcntl  # not on every platform, and needed by campaigns alone

    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
