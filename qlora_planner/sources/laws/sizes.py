"""Sizes in the law of a class: a whole number, or a sum of products of the class's dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

# A term is a numerator, a denominator and the names of the dimensions that are multiplied, or divided by ("/name").
Size: TypeAlias = int | Sequence[Sequence[int | str]]


class NotWholeError(ValueError):
    """A size that is no whole number, or not above zero, for these dimensions."""


def product_of(names: Sequence[int | str], dims: Mapping[str, int]) -> Fraction:
    """The product of these dimensions."""
    value = Fraction(1)
    for name in names:
        text = str(name)
        value = value / dims[text[1:]] if text.startswith("/") else value * dims[text]
    return value


def size_at(size: Size, dims: Mapping[str, int]) -> int:
    """The size at these dimensions. Raises NotWholeError where that is no whole number from zero on."""
    if isinstance(size, int):
        return size
    total = Fraction(0)
    for numerator, denominator, *names in size:
        total += Fraction(int(numerator), int(denominator)) * product_of(names, dims)
    if total.denominator != 1 or total < 0:
        raise NotWholeError(described(size))
    return int(total)


def described(size: Any, called: Mapping[str, str] | None = None) -> str:
    """`hidden_size / num_attention_heads` or `4 x hidden_size`, as people write it; `called` renames dimensions."""
    names_of = called or {}
    if isinstance(size, int):
        return str(size)
    terms = []
    for numerator, denominator, *names in size:
        factors = [names_of.get(str(name), str(name)) for name in names if not str(name).startswith("/")]
        factors = ([str(numerator)] if numerator != 1 or not factors else []) + factors
        by = [str(denominator)] if denominator != 1 else []
        by += [names_of.get(str(name)[1:], str(name)[1:]) for name in names if str(name).startswith("/")]
        terms.append(" / ".join([" x ".join(factors), *by]))
    return " + ".join(terms)
