"""Bytes are integers everywhere; text such as `24564MiB` exists only at the edge."""

from __future__ import annotations

import re

from qlora_planner.errors import InputError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_BINARY_UNITS = {"b": 1, "kib": KIB, "mib": MIB, "gib": GIB, "tib": 1 << 40}
# Bytes of the largest machine there is have fifteen digits.
_LONGEST_SIZE = 40
_MAKERS_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt])b?\s*", re.IGNORECASE)
_ZERO = re.compile(r"\s*0+(?:\.0*)?\s*(?:b|[kmgt]ib)?\s*", re.IGNORECASE)
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*$", re.IGNORECASE)


def parse_size(text: str, *, option: str = "size") -> int:
    """Bytes of an explicit binary size such as `800MiB` or `1.5GiB`.

    Decimal units are refused: what a card maker calls a GB is looked up, never computed.
    Raises InputError naming `option` when `text` is not such a size or is not positive.
    """
    if len(text) > _LONGEST_SIZE:
        raise InputError(f"{option}: a size of {len(text):,} characters is more than anything has")
    match = _SIZE.match(text)
    unit = match.group(2).lower() if match else ""
    if match is None or unit not in _BINARY_UNITS:
        raise InputError(f"{option}: {text!r} is not a size; write it like 800MiB or 1.5GiB")
    size_bytes = int(float(match.group(1)) * _BINARY_UNITS[unit])
    if size_bytes <= 0:
        raise InputError(f"{option}: {text!r} must be more than zero")
    return size_bytes


def parse_memory(text: str, option: str, *, zero: bool = False) -> int:
    """Bytes of `800MiB` or `1.5GiB`; with `zero`, nothing at all is allowed too.

    Raises InputError, for a maker's unit such as 2GB with the two figures that it could mean.
    """
    if len(text) > _LONGEST_SIZE:
        raise InputError(f"{option}: a size of {len(text):,} characters is more than anything has")
    if zero and _ZERO.fullmatch(text):
        return 0
    makers = _MAKERS_UNIT.fullmatch(text)
    if makers is not None:
        number, letter = makers[1], makers[2].upper()
        raise InputError(
            f"{option}: {text.strip()!r} could be decimal or binary; write {number}{letter}iB"
            + (f" ({format_mib(parse_size(f'{number}GiB', option=option))})" if letter == "G" and float(number) else "")
        )
    return parse_size(text, option=option)


def format_gib(size_bytes: int | None, digits: int = 2) -> str:
    """`22.49 GiB`; an unknown size is shown as a dash."""
    return "-" if size_bytes is None else f"{size_bytes / GIB:.{digits}f} GiB"


def format_mib(size_bytes: int | None) -> str:
    """`24,564 MiB`; an unknown size is shown as a dash."""
    return "-" if size_bytes is None else f"{size_bytes / MIB:,.0f} MiB"


def format_size(size_bytes: int | None) -> str:
    """The unit that keeps three figures readable: B, KiB, MiB or GiB."""
    if size_bytes is None:
        return "-"
    for unit, scale in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size_bytes) >= scale:
            return f"{size_bytes / scale:.2f} {unit}"
    return f"{size_bytes} B"


def format_params(count: int) -> str:
    """`8.03B`, `494M`: the way model sizes are spoken of."""
    if count >= 10**9:
        return f"{count / 1e9:.2f}B"
    return f"{count / 1e6:.0f}M"
