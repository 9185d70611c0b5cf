"""The chance of running out of memory: what of it is called a fit, and how much of it somebody takes."""

from __future__ import annotations

import re

from qlora_planner.errors import InputError
from qlora_planner.text import quoted

FITS_AT_MOST, TIGHT_AT_MOST = 0.01, 0.05

# Only "%" or a bare number: a word behind the figure would be a unit that nobody defined.
_CHANCE = re.compile(r"\s*(?P<number>\d{1,9}(?:\.\d{0,15})?|\.\d{1,15})\s*(?P<percent>%?)\s*")
_PERCENT = 100


def verdict_of(chance: float, risk: float = TIGHT_AT_MOST) -> str:
    """fits, tight or does-not-fit, where a chance up to `risk` is taken: a smaller one than a fit's holds for fits too.

    >>> [verdict_of(chance) for chance in (0.002, 0.04, 0.2)], verdict_of(0.2, risk=0.25)
    (['fits', 'tight', 'does-not-fit'], 'tight')
    """
    return "does-not-fit" if chance > risk else "fits" if chance <= FITS_AT_MOST else "tight"


def parse_risk(value: str | float, name: str = "risk") -> float:
    """A chance between 0 and 1 from `5%`, `5` or `0.05`, which are the same.

    With a percent sign it is a percentage; a bare number from 1 on is one too, and below 1 it is a share of one.
    Raises InputError naming it as `name` for anything else, for none at all, and for what is certain.

    >>> parse_risk("5%"), parse_risk("5"), parse_risk(0.05), parse_risk("0.5%")
    (0.05, 0.05, 0.05, 0.005)
    """
    text = value if isinstance(value, str) else repr(value)
    match = None if isinstance(value, bool) else _CHANCE.fullmatch(text)
    if match is None:
        raise InputError(f"{name}: {quoted(text)} is no chance; write 5%, 5 or 0.05, which are the same")
    number = float(match["number"])
    chance = number / _PERCENT if match["percent"] or number >= 1 else number
    if not 0 < chance < 1:
        raise InputError(f"{name}: {quoted(text)} must be more than 0 % and less than 100 %; the usual is 5%")
    return chance


def format_risk(risk: float) -> str:
    """`5 %`, `0.5 %`."""
    return f"{_PERCENT * risk:g} %"
