"""Records: what is made once, passed on and never changed. A hundred kinds of them are declared before an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def record(cls: type[_T]) -> type[_T]:
    """A dataclass with slots, keyword arguments and a hash, which the type checker holds to be frozen.

    It is not frozen while it runs. The standard library compiles new source for each method of each class, and what
    refuses a change is half of that; here the constructor alone is compiled. Together that was a tenth of a whole
    `plan` (`benchmarks/search.py` times one).
    """
    own = cls.__dict__.keys()
    made: Any = dataclass(slots=True, kw_only=True, eq=False, repr=False)(cls)
    specs = made.__dataclass_fields__.values()
    values, shown = _values([spec.name for spec in specs if spec.compare]), [spec.name for spec in specs if spec.repr]

    def equal(self: Any, other: object) -> bool:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def text(self: Any) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    for name, method in (("__eq__", equal), ("__hash__", lambda self: hash(values(self))), ("__repr__", text)):
        if name not in own:
            setattr(made, name, method)
    found: type[_T] = made
    return found


def _values(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    return attrgetter(*names) if len(names) > 1 else lambda made: tuple(getattr(made, name) for name in names)


def document(value: Any) -> Any:
    """What JSON and YAML hold of a value: a record by its fields, unless its `to_dict` says otherwise."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {name: document(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [document(item) for item in value]
    return document(fields_of(value)) if is_dataclass(value) else value


def fields_of(made: Any) -> dict[str, Any]:
    """A record's fields by name, in their order; what they hold stays as it is."""
    return {spec.name: getattr(made, spec.name) for spec in fields(made)}
