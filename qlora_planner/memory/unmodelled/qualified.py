"""What no figure counts, and when it takes a verdict away.

Whoever meets such a thing (a key of a config, rows with images, a checkpoint's own format, versions of a stack) makes
an `Unmodelled` for it and passes the estimate, once it is made, through `qualified`: that marks its figures as partial
and turns a verdict that the thing could change into `cannot-say`. A search over runs is made without them, or it would
find nothing that fits; its answer is qualified last. `cli.exits.exit_code` gives the exit code of what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import hypot

from qlora_planner.memory.records import Fit, MemoryEstimate, Unmodelled
from qlora_planner.units import format_gib

CANNOT_SAY = "cannot-say"


def qualified(estimate: MemoryEstimate, things: Iterable[Unmodelled]) -> MemoryEstimate:
    """`estimate` with these things named as left out of its figures, which stay as they are.

    The verdict becomes `cannot-say` where they could change it: what only takes more leaves `does-not-fit`
    standing, what only takes less leaves `fits` and `tight`, and what is bounded leaves any that is the same at its
    bound (`fits` with the interval on top: as errors that know nothing of each other, the root of their squares).
    Things that are named already are not named twice. A run that the stack refuses stays refused.
    """
    more = tuple(thing for thing in dict.fromkeys(things) if thing not in estimate.unmodelled)
    if not more:
        return estimate
    whole = replace(estimate, unmodelled=(*estimate.unmodelled, *more))
    fit = whole.fit
    if fit is None or fit.verdict == "will-not-run" or not (fit.verdict == CANNOT_SAY or _changeable(whole, fit)):
        return whole
    telling = [thing for thing in whole.unmodelled if whole.matters(thing)] or whole.unmodelled
    reasons = [f"not modelled: {keys} ({what})" for keys, what in told(telling)]
    reasons.append(
        f"partial, without that: peak {format_gib(whole.peak.device_bytes)} of {format_gib(fit.usable_bytes)} usable,"
        f" needs at least {format_gib(whole.floor_bytes)}"
    )
    return replace(whole, fit=replace(fit, verdict=CANNOT_SAY, probability_oom=None, reasons=tuple(reasons)))


def told(things: Iterable[Unmodelled]) -> list[tuple[str, str]]:
    """What is left out as pairs of keys and what they do: keys that do the same are named together."""
    keys_of: dict[str, dict[str, None]] = {}
    for thing in things:
        keys_of.setdefault(thing.what, {})[thing.key] = None
    return [(", ".join(keys), what) for what, keys in keys_of.items()]


def _changeable(estimate: MemoryEstimate, fit: Fit) -> bool:
    """Whether what is left out could make another verdict than the one at hand."""
    peak, floor = estimate.peak, estimate.floor_bytes
    if fit.verdict == "does-not-fit":
        # What is not sure enough because of its interval stays so, whatever moves it by less than that.
        near = floor <= fit.usable_bytes
        less = reach([thing for thing in estimate.unmodelled if not near or estimate.matters(thing)], "down")
        return less is None or (less > 0 and floor * (1 - less) <= fit.usable_bytes)
    more = reach(estimate.unmodelled, "up")
    spread = peak.high_bytes / max(peak.device_bytes, 1) - 1 if fit.verdict == "fits" else 0.0
    return more is None or (more > 0 and floor * (1 + hypot(more, spread)) > fit.usable_bytes)


def reach(things: Iterable[Unmodelled], direction: str) -> float | None:
    """How far they can move a figure in this direction together, as a part of it; None where nothing bounds it."""
    reaches = [thing.at_most for thing in things if thing.direction in (direction, "both")]
    bounded = [reach for reach in reaches if reach is not None]
    return sum(bounded) if len(bounded) == len(reaches) else None
