"""Python text: calls with their arguments, whatever strings a plan holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Code(str):
    """An expression that is written as it is; every other string is written as a literal."""


def literal(value: Any) -> str:
    """`value` as Python text; only `Code` is not quoted."""
    if isinstance(value, Code):
        return str(value)
    if isinstance(value, str) and value.isprintable() and not set(value) & {'"', "\\"}:
        return f'"{value}"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(key)}: {literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    return repr(value)


def call(name: str, arguments: Mapping[str, Any], *leading: str) -> str:
    """`name(...)` with an argument a line; `leading` are positional ones, written as they are."""
    if not arguments:
        return f"{name}({', '.join(leading)})"
    lines = [*leading, *(f"{key}={literal(value)}" for key, value in arguments.items())]
    return name + "(\n" + "".join(f"    {_indented(line)},\n" for line in lines) + ")"


def _indented(text: str) -> str:
    return text.replace("\n", "\n    ")
