"""From traces at a few sizes to one tape whose event sizes are polynomials in batch, sequence and rank. No torch.

Sizes of storages are products of dimensions, so few monomials are in each. The fewest that fit every traced point
with integer coefficients are taken; as a size has at most three monomials, five points or more leave points over
that a wrong choice would fail at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations

from qlora_planner.profiling.tracing.tape import Event, Tape, WholeStage

# Exponents of batch, sequence and rank.
MONOMIALS: tuple[tuple[int, int, int], ...] = (
    (0, 0, 0),
    (1, 1, 0),
    (0, 0, 1),
    (0, 1, 0),
    (1, 0, 0),
    (1, 1, 1),
    (1, 2, 0),
    (0, 2, 0),
    (1, 0, 1),
    (0, 1, 1),
)
_MOST_TERMS = 3
_SPARE_POINTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Sizes of one trace."""

    batch: int
    seq: int
    rank: int

    def at(self, exponents: tuple[int, int, int]) -> int:
        """Value of a monomial."""
        b, s, r = exponents
        return int(self.batch**b * self.seq**s * self.rank**r)


@dataclass(frozen=True, slots=True, kw_only=True)
class Polynomial:
    """Bytes as a sum of coefficients times monomials (indices into MONOMIALS)."""

    terms: tuple[tuple[int, int], ...]  # (monomial, coefficient)

    def at(self, point: Point) -> int:
        """Bytes at a point."""
        return sum(coefficient * point.at(MONOMIALS[index]) for index, coefficient in self.terms)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledTape:
    """A tape's structure (its sizes are those of one point) and the polynomial of each event's size."""

    shape: Tape
    polynomials: tuple[Polynomial, ...]
    events: tuple[int, ...]  # polynomial of each event
    static: tuple[int, ...]  # polynomial of each static event
    layers: tuple[int, ...]  # polynomial of each traced layer's static bytes
    whole: tuple[tuple[int, int], ...]  # polynomials of each whole stage's rise and delta

    def at(self, point: Point) -> Tape:
        """The tape that tracing at this point would give."""
        sizes = [polynomial.at(point) for polynomial in self.polynomials]
        shape = self.shape
        return replace(
            shape,
            events=_sized(shape.events, self.events, sizes),
            static=_sized(shape.static, self.static, sizes),
            static_by_layer=tuple(sizes[index] for index in self.layers),
            whole=tuple(
                WholeStage(stage=stage.stage, step=stage.step, rise=sizes[rise], delta=sizes[delta])
                for stage, (rise, delta) in zip(shape.whole, self.whole, strict=True)
            ),
        )


def _sized(events: Sequence[Event], indices: Sequence[int], sizes: Sequence[int]) -> tuple[Event, ...]:
    return tuple(
        Event(storage=event.storage, size=sizes[index], op=event.op)
        for event, index in zip(events, indices, strict=True)
    )


def _solve(rows: Sequence[Sequence[int]], values: Sequence[int]) -> list[Fraction] | None:
    """Solution of a square system, None if it is singular."""
    size = len(rows)
    matrix = [[Fraction(x) for x in row] + [Fraction(value)] for row, value in zip(rows, values, strict=True)]
    for column in range(size):
        pivot = next((index for index in range(column, size) if matrix[index][column]), None)
        if pivot is None:
            return None
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        head = matrix[column][column]
        matrix[column] = [x / head for x in matrix[column]]
        for index in range(size):
            if index != column and matrix[index][column]:
                factor = matrix[index][column]
                matrix[index] = [x - factor * y for x, y in zip(matrix[index], matrix[column], strict=True)]
    return [row[-1] for row in matrix]


def fit(points: Sequence[Point], values: Sequence[int]) -> Polynomial | None:
    """The polynomial with fewest terms and integer coefficients through all points; None if there is none."""
    if not any(values):
        return Polynomial(terms=())
    table = [[point.at(exponents) for exponents in MONOMIALS] for point in points]
    for count in range(1, min(_MOST_TERMS, len(points) - _SPARE_POINTS) + 1):
        for chosen in combinations(range(len(MONOMIALS)), count):
            solution = _solve([[table[row][index] for index in chosen] for row in range(count)], values[:count])
            if solution is None or any(x.denominator != 1 or not x for x in solution):
                continue
            terms = tuple((index, int(x)) for index, x in zip(chosen, solution, strict=True))
            found = Polynomial(terms=terms)
            if all(found.at(point) == value for point, value in zip(points, values, strict=True)):
                return found
    return None


def compile_tapes(points: Sequence[Point], tapes: Sequence[Tape]) -> CompiledTape:
    """One tape for all sizes between the same breakpoints.

    Raises ValueError where the traces differ in more than sizes, or a size is no such polynomial.
    """
    first = tapes[0]
    for tape in tapes[1:]:
        same = tape.segments == first.segments and tape.layer_order == first.layer_order
        if not same or [e.op for e in tape.events] != [e.op for e in first.events]:
            raise ValueError("the traces take different paths: a breakpoint lies between their sizes")
    known: dict[tuple[int, ...], int] = {}
    polynomials: list[Polynomial] = []

    def index_of(values: tuple[int, ...]) -> int:
        if values not in known:
            found = fit(points, values)
            if found is None:
                raise ValueError(f"no polynomial of batch, sequence and rank gives the sizes {values}")
            known[values] = len(polynomials)
            polynomials.append(found)
        return known[values]

    def columns(name: str) -> tuple[int, ...]:
        rows = [getattr(tape, name) for tape in tapes]
        return tuple(index_of(tuple(event.size for event in events)) for events in zip(*rows, strict=True))

    return CompiledTape(
        shape=first,
        events=columns("events"),
        static=columns("static"),
        layers=tuple(index_of(values) for values in zip(*(tape.static_by_layer for tape in tapes), strict=True)),
        whole=tuple(
            (index_of(tuple(stage.rise for stage in stages)), index_of(tuple(stage.delta for stage in stages)))
            for stages in zip(*(tape.whole for tape in tapes), strict=True)
        ),
        polynomials=tuple(polynomials),
    )
