"""Tapes of a whole model class: sizes are polynomials in the class's dimensions beside batch, sequence and rank."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import chain, repeat
from math import prod
from typing import Any

from qlora_planner.record import record
from qlora_planner.spec.layers import kept_positions, represent
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.trace import CompiledTape, Monomial, Term

# Numerator, denominator, powers of (batch, sequence, rank), and the dimensions that are multiplied, by their names.
FamilyTerm = tuple[int, int, Monomial, tuple[str, ...]]


@record
class FamilyTape:
    """A tape of one structure of a class: `kinds` numbers the kind of each layer that it holds, as they come."""

    kinds: tuple[str, ...]
    sizes: tuple[tuple[FamilyTerm, ...], ...]
    tape: CompiledTape  # its sizes are empty

    def of_model(self, profile: ModelProfile) -> CompiledTape | None:
        """The tape of one model; None where the model's layers or dimensions are not this family's."""
        order = layer_kinds(profile)
        kept = kept_positions(order)
        if numbered(order[index] for index in kept) != self.kinds:
            return None
        sizes = []
        for terms in self.sizes:
            filled = _filled(terms, profile.dims)
            if filled is None:
                return None
            sizes.append(filled)
        tape = self.tape
        return CompiledTape(
            variant=tape.variant, sizes=tuple(sizes), workspace_sizes=tape.workspace_sizes, events=tape.events,
            segments=tape.segments, places=represent(kept, order), kept=kept,
        )  # fmt: skip

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], symbols: tuple[str, ...], kinds: tuple[str, ...]) -> FamilyTape:
        """Read what `tools.families` wrote: a tape whose sizes name dimensions by their place in `symbols`."""
        sizes = tuple(
            tuple((n, d, (b, s, r), tuple(symbols[index] for index in product)) for n, d, b, s, r, *product in terms)
            for terms in raw["sizes"]
        )
        return cls(kinds=kinds, sizes=sizes, tape=CompiledTape.from_dict({**raw, "sizes": [[] for _ in sizes]}))


def layer_kinds(profile: ModelProfile) -> tuple[str, ...]:
    """The kind of each layer of a model."""
    names = [kind.name for kind in profile.layer_kinds]
    return tuple(chain.from_iterable(repeat(names[index], count) for index, count in profile.layer_order))


def numbered(kinds: Any) -> tuple[str, ...]:
    """Kinds of layers by number, as they come."""
    numbers: dict[str, str] = {}
    return tuple(numbers.setdefault(kind, str(len(numbers))) for kind in kinds)


def _filled(terms: tuple[FamilyTerm, ...], dims: Mapping[str, int | float | None]) -> tuple[Term, ...] | None:
    """The terms with numbers for dimensions, those of one monomial added up; None where a dimension is not known."""
    sums: dict[Monomial, Fraction] = {}
    for numerator, denominator, monomial, product in terms:
        values = [dims.get(name) for name in product]
        if any(value is None for value in values):
            return None
        share = Fraction(numerator * prod(int(value or 0) for value in values), denominator)
        sums[monomial] = sums.get(monomial, Fraction(0)) + share
    return tuple((value.numerator, value.denominator, monomial) for monomial, value in sums.items() if value)
