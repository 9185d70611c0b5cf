"""What keeps a config from being of a structure, and which of several reasons is told."""

from __future__ import annotations

from collections.abc import Sequence


class Unlike(Exception):
    """A config that is of another structure; `faults` says in how many ways, and `reason` names the first.

    `breaks` marks a config that the class itself takes and then breaks on.
    """

    def __init__(self, reason: str, faults: int = 1, breaks: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.faults, self.breaks = reason, faults, breaks


def nearest(refused: Sequence[Unlike]) -> Unlike:
    """The structure with the fewest faults; where several are as near, for different reasons, the first two."""
    fewest = min(unlike.faults for unlike in refused)
    near = {unlike.reason: unlike for unlike in refused if unlike.faults == fewest}
    first, *others = near.values()
    if not others:
        return first
    return Unlike(f"{first.reason}; or {others[0].reason}", fewest, first.breaks and others[0].breaks)
