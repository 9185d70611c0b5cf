"""From traces of one run at other sizes of image to one tape, whose sizes are sums in the letters of an image too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from math import prod

import numpy as np

from qlora_planner.record import record
from qlora_planner.spec.scans import ScanLoop, longer, place_after, rescanned
from qlora_planner.spec.trace import CompiledTape, Monomial, Tape
from qlora_planner.spec.weaving.windows import WINDOW, WindowLoop
from tools.compiling import NotPolynomialError, Point, solve
from tools.families.fitting import Product, SizeFitter, Sum, UnfittedError

# What sums of three are made of: tokens of text among those of images, as they are masked and put in.
_OF_RUN: tuple[Monomial, ...] = ((0, 0, 0), (1, 1, 0), (0, 0, 1), (1, 1, 1), (0, 2, 0))


@record
class Traced:
    """One trace: its sizes (batch, sequence, rank), the letters of its image, and patches of each window, if any."""

    tape: Tape
    point: Point
    letters: Mapping[str, int]
    windows: tuple[int, ...] = ()


class ImageFitter:
    """Sums of products of batch, sequence, rank and an image's letters: one or two of any, or three of simple ones."""

    def __init__(self, traces: Sequence[Traced]) -> None:
        varied = {name for each in traces for name in each.letters if each.letters[name] != traces[0].letters[name]}
        self.letters = sorted(varied)
        self._points = [each.point for each in traces]
        self._fitter = SizeFitter(self.letters, [each.letters for each in traces], self._points, ())
        products: list[Product] = [(), *((name,) for name in self.letters)]
        products += [(first, second) for first in self.letters for second in self.letters if first <= second]
        self._columns: list[tuple[Monomial, Product, list[int]]] = []
        for monomial, product in [*((m, ()) for m in _OF_RUN), *(((0, 0, 0), p) for p in products[1:])]:
            values = [
                b ** monomial[0] * s ** monomial[1] * r ** monomial[2] * prod(each.letters[name] for name in product)
                for each, (b, s, r) in zip(traces, self._points, strict=True)
            ]
            if all(not _proportional(values, other) for _, _, other in self._columns):
                self._columns.append((monomial, product, values))

    def fit(self, observed: Sequence[int]) -> Sum:
        """The sum that is `observed` at every trace. Raises UnfittedError."""
        try:
            return self._fitter.fit(observed)
        except UnfittedError:
            for chosen in combinations(self._columns, 3):
                solved = solve([values for _, _, values in chosen], list(observed))
                if solved is not None and all(solved):
                    return tuple((c, m, product) for c, (m, product, _) in zip(solved, chosen, strict=True))
            raise


def _proportional(one: Sequence[int], other: Sequence[int]) -> bool:
    return len({Fraction(a, b) for a, b in zip(one, other, strict=True)}) == 1


def solved_tape(
    traces: Sequence[Traced], loops: Sequence[ScanLoop], variant: str
) -> tuple[CompiledTape, tuple[Sum, ...], ImageFitter, tuple[WindowLoop, ...]]:
    """One tape of `traces`, of whose first the `loops` over windows are, and the sum of each of its sizes.

    Raises NotPolynomialError where the others do otherwise, UnfittedError for a size that is no such sum.
    """
    first = CompiledTape.of(traces[0].tape, variant)
    outside, inside = _observed(first, traces, loops)
    fitter = ImageFitter(traces)
    turned = tuple(WindowLoop(loop=loop, backward=_backward(at, traces, inside)) for at, loop in enumerate(loops))
    fits: dict[tuple[int, ...], Sum] = {}
    numbers: dict[tuple[Sum, bool], int] = {}
    events = list(first.events)
    workspaces = set(first.workspace_sizes)
    for at, code in enumerate(first.events):
        if code < 0:
            continue
        where = next(
            ((n, (at - loop.start) % loop.length) for n, loop in enumerate(loops) if loop.start <= at < loop.stop), None
        )
        if where is None:
            observed = outside[at]
            if observed not in fits:
                fits[observed] = fitter.fit(observed)
            terms = fits[observed]
        else:
            terms = _of_windows(inside[where], traces, backward=turned[where[0]].backward)
        events[at] = numbers.setdefault((terms, code - 1 in workspaces), len(numbers)) + 1
    tape = CompiledTape(
        variant=variant, sizes=tuple(() for _ in numbers), events=tuple(events), segments=first.segments,
        workspace_sizes=tuple(number for number, (_, workspace) in enumerate(numbers) if workspace),
        places=(), kept=(),
    )  # fmt: skip
    return tape, tuple(terms for terms, _ in numbers), fitter, turned


Inside = dict[tuple[int, int], list[list[int]]]  # by loop and event of a turn: for each trace the size at each turn


def _observed(
    first: CompiledTape, traces: Sequence[Traced], loops: Sequence[ScanLoop]
) -> tuple[dict[int, tuple[int, ...]], Inside]:
    """Each birth's sizes in all traces, by its event in the first."""
    sizes: dict[int, list[int]] = {at: [] for at, code in enumerate(first.events) if code > 0}
    inside: Inside = {}
    for each in traces:
        more = len(each.windows) - loops[0].count if loops else 0
        codes = [0 if code > 0 else code for code in rescanned(first.events, loops, more)]
        own = CompiledTape.of(each.tape, "own").events
        moved = tuple(
            part.at(place_after(part.start, loops, more), place_after(part.stop, loops, more))
            for part in first.segments
        )
        if codes != [0 if code > 0 else code for code in own] or moved != each.tape.segments:
            raise NotPolynomialError(f"other events at {each.point} with an image of {dict(each.letters)}")
        at = shift = 0
        for number, (loop, there) in enumerate(zip(loops, longer(loops, more), strict=True)):
            for event in range(at, loop.start):
                if event in sizes:
                    sizes[event].append(each.tape.events[event + shift][1])
            for offset in range(loop.length):
                if first.events[loop.start + offset] > 0:
                    turns = [each.tape.events[there.start + n * loop.length + offset][1] for n in range(there.count)]
                    inside.setdefault((number, offset), []).append(turns)
            at, shift = loop.stop, shift + more * loop.length
        for event in range(at, len(first.events)):
            if event in sizes:
                sizes[event].append(each.tape.events[event + shift][1])
    return {at: tuple(values) for at, values in sizes.items() if values}, inside


def _backward(number: int, traces: Sequence[Traced], inside: Inside) -> bool:
    """Whether a loop goes from the last window to the first, as what its turns make of windows of other sizes says."""
    own = [turns for (loop, _), turns in inside.items() if loop == number]
    for backward in (False, True):
        if all(_line(turns, traces, backward=backward) is not None for turns in own):
            return backward
    raise NotPolynomialError(f"loop {number} over windows goes neither forward nor backward")


def _line(
    turns: Sequence[Sequence[int]], traces: Sequence[Traced], *, backward: bool
) -> tuple[Fraction, Fraction] | None:
    """What a turn makes, as a line in the patches of its window; None where it is none."""
    pairs = {
        (length, size)
        for each, own in zip(traces, turns, strict=True)
        for length, size in zip(reversed(each.windows) if backward else each.windows, own, strict=True)
    }
    (low, least), (high, most) = min(pairs), max(pairs)
    slope = Fraction(most - least, high - low) if high > low else Fraction(0)
    start = least - slope * low
    return (slope, start) if all(slope * length + start == size for length, size in pairs) else None


def _of_windows(turns: Sequence[Sequence[int]], traces: Sequence[Traced], *, backward: bool) -> Sum:
    line = _line(turns, traces, backward=backward)
    assert line is not None
    terms: list[tuple[Fraction, Monomial, Product]] = [(line[0], (0, 0, 0), (WINDOW,)), (line[1], (0, 0, 0), ())]
    return tuple(term for term in terms if term[0])


def window_loops(tape: Tape, count: int) -> tuple[ScanLoop, ...]:
    """The loops over so many windows, all of one size: stretches that are the same so many events later, by the bytes
    of what is made or freed, just as often as there are windows. Those of too many turns by chance fail where another
    trace is held to them."""
    compiled = CompiledTape.of(tape, "own")
    births = [code for code in compiled.events if code > 0]
    told = np.array([code if code > 0 else -births[-code - 1] for code in compiled.events])
    taken = np.zeros(len(told), dtype=bool)
    loops: list[ScanLoop] = []
    for length in range(1, 64):
        same = np.concatenate([[0], (told[:-length] == told[length:]).astype(int), [0]])
        edges = np.diff(same)
        for start, stop in zip(np.nonzero(edges == 1)[0], np.nonzero(edges == -1)[0], strict=True):
            loop = ScanLoop.of(int(start), length, int(stop - start) // length + 1)
            if loop.count == count and not taken[loop.start : loop.stop].any():
                taken[loop.start : loop.stop] = True
                loops.append(loop)
    return tuple(sorted(loops, key=lambda loop: loop.start))
