"""Sizes as sums of products of a class's dimensions, solved in fractions at toys whose dimensions share no factors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations, combinations_with_replacement

from qlora_planner.sources.laws.sizes import Size, product_of

_FACTORS = (1, 2, 3, 4)
_SIMPLE = 1 << 12  # numerators and denominators of a coefficient that means something


class Sizes:
    """Solves whole numbers seen at several toys; `rows` gives each toy's dimensions."""

    def __init__(self, symbols: Sequence[str], rows: Sequence[Mapping[str, int]]) -> None:
        self._rows = rows
        self._single: dict[tuple[Fraction, ...], tuple[tuple[str, ...], Fraction]] = {}
        self._columns: list[tuple[tuple[str, ...], tuple[int, ...]]] = []
        self._known: dict[tuple[int, ...], Size | None] = {}
        products = [(), *((name,) for name in symbols), *combinations_with_replacement(symbols, 2)]
        quotients = [(name, f"/{by}") for name in symbols for by in symbols if name != by]
        for names in (*products, *quotients):
            values = tuple(product_of(names, row) for row in rows)
            ratios = tuple(value / values[0] for value in values)
            if ratios not in self._single:
                self._single[ratios] = names, values[0]
                if names not in quotients:
                    self._columns.append((names, tuple(int(value) for value in values)))

    def fit(self, seen: Sequence[int]) -> Size | None:
        """The sum of at most three products that has the values `seen` at the toys; None where there is none."""
        values = tuple(seen)
        if values not in self._known:
            self._known[values] = self._fit(values)
        return self._known[values]

    def _fit(self, values: tuple[int, ...]) -> Size | None:
        if len(set(values)) == 1:
            return values[0]
        if not all(values):
            return None
        ratios = tuple(Fraction(value, values[0]) for value in values)
        if ratios in self._single:
            names, first = self._single[ratios]
            share = values[0] / first
            return [[share.numerator, share.denominator, *names]]
        found = sorted(self._pairs(values), key=_complexity) or sorted(self._triples(values), key=_complexity)
        return found[0] if found else None

    def _pairs(self, wanted: tuple[int, ...]) -> Iterator[list[list[int | str]]]:
        for (names, values), (other_names, others) in combinations(self._columns, 2):
            gap = values[0] * others[1] - values[1] * others[0]
            if not gap:
                continue
            x = wanted[0] * others[1] - wanted[1] * others[0]
            y = values[0] * wanted[1] - values[1] * wanted[0]
            if not (x and y) or any(
                x * a + y * b != gap * value for a, b, value in zip(values, others, wanted, strict=True)
            ):
                continue
            first, second = Fraction(x, gap), Fraction(y, gap)
            if all(abs(part.numerator) < _SIMPLE and part.denominator < _SIMPLE for part in (first, second)):
                yield [
                    [first.numerator, first.denominator, *names],
                    [second.numerator, second.denominator, *other_names],
                ]

    def _triples(self, wanted: tuple[int, ...]) -> Iterator[list[list[int | str]]]:
        """Sums of three, one a dimension times a small factor: three of the toys solve it, the rest prove it."""
        for third, values in (column for column in self._columns if len(column[0]) == 1):
            for factor in _FACTORS:
                rest = tuple(value - factor * other for value, other in zip(wanted, values, strict=True))
                if min(rest) <= 0:
                    break
                for pair in self._pairs(rest):
                    yield [*pair, [factor, 1, *third]]


def _complexity(terms: Sequence[Sequence[int | str]]) -> int:
    return sum(len(term) + abs(int(term[0])) + int(term[1]) for term in terms)
