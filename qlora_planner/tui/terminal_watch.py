"""Whether there is still somebody at the terminal: a pty can go without a signal."""

from __future__ import annotations

import select
import sys


def gone() -> bool:
    """Whether the terminal on stdin has hung up. False where that cannot be told."""
    if not hasattr(select, "poll"):
        return False
    try:
        descriptor = sys.__stdin__.fileno() if sys.__stdin__ is not None else -1
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        events = poll.poll(0)
    except (OSError, ValueError):
        return True
    return any(mask & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, mask in events)
