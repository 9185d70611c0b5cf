"""What a verdict is for whoever scripts against it."""

from __future__ import annotations

from qlora_planner.memory import MemoryEstimate

CANNOT_SAY = 5


def exit_code(found: MemoryEstimate) -> int:
    """0 it fits, tightly or not; 1 it does not fit or will not run; 5 nobody can say: see `memory.unmodelled`.

    Without a card there is no verdict: 1 for what the stack refuses, 5 for figures that are partial.
    """
    if found.verdict is None:
        refused = any(problem.blocking for problem in found.problems)
        return 1 if refused else CANNOT_SAY if found.partial else 0
    if found.verdict == "cannot-say":
        return CANNOT_SAY
    return 1 if found.verdict in ("does-not-fit", "will-not-run") else 0
