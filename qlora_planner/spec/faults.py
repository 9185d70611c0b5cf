"""How readers word what is wrong: all faults of one file, in one line, whatever the file contained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NoReturn

from qlora_planner.errors import InputError, one_line
from qlora_planner.text import listed, plain, quoted, short

# A wrecked file can hold thousands of faults; nobody reads past the first few.
MOST_FAULTS = 8
_LONGEST_FAULT = 1000


def refuse(faults: list[str], location: str) -> NoReturn:
    """Raise InputError with the faults of `location`, in the order found, each once."""
    distinct = list(dict.fromkeys(faults))
    rest = len(distinct) - MOST_FAULTS
    shown = [short(fault, _LONGEST_FAULT) for fault in distinct[:MOST_FAULTS]]
    raise InputError(one_line([*shown, f"and {rest} more"] if rest > 0 else shown, plain(location)))


def known_fields(raw: Any, record: type, location: str, needed: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """`raw`, of which every field is one of the dataclass `record`, and none of `needed` is missing.

    Raises InputError for what is no object, unknown fields and missing ones.
    """
    if not isinstance(raw, Mapping):
        raise InputError(f"{location}: must be an object, not {quoted(raw)}")
    names = {spec.name for spec in fields(record)}
    if unknown := sorted(set(map(str, raw)) - names):
        raise InputError(f"{location}: unknown field {listed(unknown)}; known: {', '.join(sorted(names))}")
    if lacking := [name for name in needed if name not in raw]:
        raise InputError(f"{location}: lacks {', '.join(lacking)}")
    return raw
