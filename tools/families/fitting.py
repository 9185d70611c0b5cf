"""From tapes of several sizes of one class to one whose sizes are polynomials in the class's own dimensions too.

Every tape is traced on a model of other dimensions at another batch, sequence and rank, which share no factors, so that
a size names the product that it is: a monomial of batch, sequence and rank times a product of dimensions. A sum of two
is solved exactly, in fractions, and proved at the tapes that are left; of longer ones the first terms are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations, combinations_with_replacement
from math import prod

import numpy as np

from qlora_planner.errors import PlannerError
from qlora_planner.spec.trace import Monomial
from tools.compiling import BASIS, Point, solve

MOST_FACTORS = 3
# A square of what all heads take: the eye of DoRA's products before an attention's output, as wide as its input.
_SQUARED_FACTORS = 4
# Rows that are packed end to end have one mask of all their tokens by all of them.
_PACKED_MASK: Monomial = (2, 2, 0)
_SIMPLE = 1 << 23  # denominators and digits of a coefficient that means something
_CONVOLVED = (3,)
Product = tuple[str, ...]
SymbolTerm = tuple[Fraction, Monomial, Product]
Sum = tuple[SymbolTerm, ...]


class UnfittedError(PlannerError):
    """A size that is no sum of few products of the dimensions."""


class SizeFitter:
    """Solves sizes at `points` (batch, sequence, rank), each on a model of the dimensions `dims` beside it."""

    def __init__(
        self, symbols: Sequence[str], dims: Sequence[Mapping[str, int]], points: Sequence[Point], begun: Sequence[Sum]
    ) -> None:
        self._at = list(zip(dims, points, strict=True))
        self._single: dict[tuple[Fraction, ...], tuple[Monomial, Product, int]] = {}
        self._columns: list[tuple[Monomial, Product, tuple[int, ...]]] = []
        for factors in range(_SQUARED_FACTORS + 1):
            for product in combinations_with_replacement(symbols, factors):
                for monomial in (*BASIS, _PACKED_MASK) if factors <= MOST_FACTORS else ((0, 0, 0),):
                    values = tuple(self._value(monomial, product, *pair) for pair in self._at)
                    ratios = tuple(Fraction(value, values[0]) for value in values)
                    if ratios not in self._single:
                        self._single[ratios] = (monomial, product, values[0])
                        # Weights of joined projections have three.
                        if factors <= 2 or (factors == MOST_FACTORS and monomial == (0, 0, 0)):
                            self._columns.append((monomial, product, values))
        self._begun = {self.at_points(terms): terms for terms in begun}
        self._matrix = np.array([values for _, _, values in self._columns], dtype=float)

    @staticmethod
    def _value(monomial: Monomial, product: Product, dims: Mapping[str, int], point: Point) -> int:
        batch, seq, rank = point
        b, s, r = monomial
        return int(batch**b * seq**s * rank**r) * prod(dims[name] for name in product)

    def at_points(self, terms: Sum) -> tuple[Fraction, ...]:
        """What a sum is at each of the points."""
        return tuple(
            sum((c * self._value(monomial, product, *pair) for c, monomial, product in terms), Fraction(0))
            for pair in self._at
        )

    def fit(self, observed: Sequence[int]) -> Sum:
        """The sum that is `observed` at the points. Raises UnfittedError."""
        if len(set(observed)) == 1:
            return ((Fraction(observed[0]), (0, 0, 0), ()),)
        ratios = tuple(Fraction(value, observed[0]) for value in observed)
        if ratios in self._single:
            monomial, product, first = self._single[ratios]
            return ((Fraction(observed[0], first), monomial, product),)
        for values, terms in self._begun.items():
            rest = [value - part for value, part in zip(observed, values, strict=True)]
            ratios = tuple(value / rest[0] for value in rest) if all(rest) else ()
            if ratios in self._single:
                monomial, product, first = self._single[ratios]
                return (*terms, (rest[0] / first, monomial, product))
        found = sorted(self._pairs(observed), key=_complexity)
        if found:
            return found[0]
        for terms in self._longer(observed):
            return terms
        raise UnfittedError(f"a size of {tuple(observed)} bytes at {[p for _, p in self._at]} is no sum of products")

    def _three(self, observed: Sequence[int]) -> Iterator[Sum]:
        """One product of dimensions times a sum of three monomials, as of the tokens that are neither padded nor a
        row's last."""
        monomials = [(monomial, [self._value(monomial, (), *pair) for pair in self._at]) for monomial in BASIS]
        for product in (p for p in dict.fromkeys(product for _, product, _ in self._columns)):
            scale = [self._value((0, 0, 0), product, *pair) for pair in self._at]
            wanted = [Fraction(value, by) for value, by in zip(observed, scale, strict=True)]
            for chosen in combinations(monomials, 3):
                solved = solve([values for _, values in chosen], wanted)
                if solved is not None and all(solved):
                    yield tuple((c, monomial, product) for c, (monomial, _) in zip(solved, chosen, strict=True))

    def _longer(self, observed: Sequence[int]) -> Iterator[Sum]:
        yield from self._three(observed)
        for before in _CONVOLVED:  # rows with as many places before them as a convolution looks back
            rows = [point[1] + before for _, point in self._at]
            if any(size % length for size, length in zip(observed, rows, strict=True)):
                continue
            for terms in self._pairs([size // length for size, length in zip(observed, rows, strict=True)]):
                if all(s == 0 for _, (_, s, _), _ in terms):
                    yield tuple(
                        (c * times, (b, s, r), product)
                        for s, times in ((1, 1), (0, before))
                        for c, (b, _, r), product in terms
                    )
        yield from self._three_products(observed)

    def _three_products(self, observed: Sequence[int]) -> Iterator[Sum]:
        """Three products of dimensions times one monomial, as of a state space's projections side by side."""
        wanted = np.array(observed, dtype=float)
        for monomial in ((0, 0, 1), (0, 0, 0), (1, 1, 0)):
            columns = [(product, values) for own, product, values in self._columns if own == monomial]
            matrix = np.array([values for _, values in columns], dtype=float)
            for first, second in combinations(range(len(columns)), 2):
                others = matrix[second + 1 :]
                if not len(others):
                    continue
                pair = np.broadcast_to(matrix[[first, second]], (len(others), 2, matrix.shape[1]))
                systems = np.concatenate([pair, others[:, None]], axis=1).transpose(0, 2, 1)
                solvable = np.abs(np.linalg.det(systems[:, :3])) > 0
                found = np.linalg.solve(
                    systems[solvable, :3], np.broadcast_to(wanted[:3, None], (solvable.sum(), 3, 1))
                )
                off = np.abs(systems[solvable] @ found - wanted[:, None]).max(axis=(1, 2))
                for near in np.nonzero(solvable)[0][off < 1e-6 * wanted.max()]:
                    chosen = [columns[first], columns[second], columns[second + 1 + int(near)]]
                    solved = solve([values for _, values in chosen], [Fraction(size) for size in observed])
                    if solved is not None and all(
                        0 < abs(c.numerator) < _SIMPLE and c.denominator < 64 for c in solved
                    ):
                        yield tuple((c, monomial, product) for c, (product, _) in zip(solved, chosen, strict=True))

    def _pairs(self, observed: Sequence[int]) -> Iterator[Sum]:
        """Sums of two products, looked for in floating point and proved in fractions."""
        matrix, wanted = self._matrix, np.array(observed, dtype=float)
        for row, (monomial, product, values) in enumerate(self._columns):
            others = matrix[row + 1 :]
            gap = values[0] * others[:, 1] - values[1] * others[:, 0]
            with np.errstate(divide="ignore", invalid="ignore"):
                x = (wanted[0] * others[:, 1] - wanted[1] * others[:, 0]) / gap
                y = (values[0] * wanted[1] - values[1] * wanted[0]) / gap
                off = np.abs(np.outer(x, values) + y[:, None] * others - wanted).max(axis=1)
            for near in np.nonzero(off < 1e-6 * wanted.max())[0]:
                other_monomial, other_product, other = self._columns[row + 1 + int(near)]
                exact = values[0] * other[1] - values[1] * other[0]
                if not exact:
                    continue
                share = Fraction(observed[0] * other[1] - observed[1] * other[0], exact)
                rest = Fraction(values[0] * observed[1] - values[1] * observed[0], exact)
                terms = ((share, monomial, product), (rest, other_monomial, other_product))
                simple = all(0 < abs(c.numerator) < _SIMPLE and c.denominator < _SIMPLE for c, _, _ in terms)
                if simple and self.at_points(terms) == tuple(observed):
                    yield terms


def _complexity(terms: Sum) -> tuple[int, int]:
    return sum(len(product) + sum(m) for _, m, product in terms), sum(c.denominator for c, _, _ in terms)
