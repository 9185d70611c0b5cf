"""What a verdict is for whoever scripts against it."""

from __future__ import annotations

from qlora_planner.memory import MemoryEstimate

CANNOT_SAY = 5


def exit_code(estimate: MemoryEstimate) -> int:
    """0 it fits, tightly or not; 1 it does not fit or will not run; 5 nobody can say: see `memory.unmodelled`.

    Without a card there is no verdict: 1 for what the stack refuses, 5 for figures that are partial.
    """
    if estimate.verdict is None:
        refused = any(problem.blocking for problem in estimate.problems)
        return 1 if refused else CANNOT_SAY if estimate.partial else 0
    if estimate.verdict == "cannot-say":
        return CANNOT_SAY
    return 1 if estimate.verdict in ("does-not-fit", "will-not-run") else 0
