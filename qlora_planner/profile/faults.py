"""How readers word what is wrong: all faults of one file, in one line, whatever the file contained."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NoReturn

from qlora_planner.errors import InputError, one_line

# A wrecked file can hold thousands of faults; nobody reads past the first few.
MOST_FAULTS = 8

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 2


def quoted(value: Any) -> str:
    """`value` as it would be written in Python, shortened, on one line."""
    try:
        return plain(_SHORT.repr(value))
    except (ValueError, RecursionError):  # an integer too long to print, a list that holds itself
        return f"a {type(value).__name__}"


def plain(text: object) -> str:
    """`text` with everything that a terminal would not print (line ends, escapes, stray bytes) made a `?`."""
    shown = str(text)
    return shown if shown.isprintable() else "".join(c if c.isprintable() else "?" for c in shown)


def refuse(faults: list[str], where: str) -> NoReturn:
    """Raise InputError with the faults of `where`, in the order found, each once."""
    distinct = list(dict.fromkeys(faults))
    rest = len(distinct) - MOST_FAULTS
    shown = [plain(fault) for fault in distinct[:MOST_FAULTS]]
    raise InputError(one_line([*shown, f"and {rest} more"] if rest > 0 else shown, plain(where)))


def known_fields(raw: Any, record: type, where: str, needed: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """`raw`, of which every field is one of the dataclass `record`, and none of `needed` is missing.

    Raises InputError for what is no object, unknown fields and missing ones.
    """
    if not isinstance(raw, Mapping):
        raise InputError(f"{where}: must be an object, not {quoted(raw)}")
    known = {spec.name for spec in fields(record)}
    if unknown := sorted(set(map(str, raw)) - known):
        raise InputError(f"{where}: unknown field {plain(', '.join(unknown))}; known: {', '.join(sorted(known))}")
    if lacking := [name for name in needed if name not in raw]:
        raise InputError(f"{where}: lacks {', '.join(lacking)}")
    return raw
