"""Records: what is made once, passed on and never changed. A hundred kinds of them are declared before an answer."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def record(cls: type[_T]) -> type[_T]:
    """A dataclass with slots, keyword arguments and a hash, which the type checker holds to be frozen.

    It is not frozen while it runs: methods that refuse a change are compiled anew for every class, half of what
    declaring it costs, and a tenth of a whole `plan` (`benchmarks/search.py` times that).
    """
    made = dataclass(slots=True, kw_only=True)(cls)
    compared = [spec.name for spec in made.__dataclass_fields__.values() if spec.compare]  # type: ignore[attr-defined]
    if len(compared) > 1:
        values: Any = attrgetter(*compared)
    else:
        values = lambda self: tuple(getattr(self, name) for name in compared)  # noqa: E731
    made.__hash__ = lambda self: hash(values(self))  # type: ignore[method-assign]
    return made


def fields_of(made: Any) -> dict[str, Any]:
    """A record's fields by name, in their order; what they hold stays as it is."""
    return {spec.name: getattr(made, spec.name) for spec in fields(made)}
