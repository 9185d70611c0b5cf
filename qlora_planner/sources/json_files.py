"""Read JSON that anybody may have written, with the faults of the file as one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from qlora_planner import bounded
from qlora_planner.spec.faults import refuse
from qlora_planner.text import quoted

# A config is a few KiB and a profile well under one MiB: what is larger is something else, often weights.
LARGEST_BYTES = 16 << 20


def read_bytes(path: Path) -> bytes:
    """All of a small regular file.

    Raises InputError for what is missing, unreadable, a folder or a device, or above `LARGEST_BYTES`.
    """
    return bounded.read_bytes(path, LARGEST_BYTES, "such JSON file")


def read_object(path: Path, *, constants: bool = False) -> dict[str, Any]:
    """The JSON object in `path`: UTF-8, with or without a byte order mark.

    A key that is given twice with different values is refused, because readers disagree on which one counts.
    `constants` lets NaN and Infinity pass, which Python writes into configs though JSON has no such numbers.
    Raises InputError naming `path`.
    """
    return parse_object(read_bytes(path), str(path), constants=constants)


def parse_object(content: bytes, location: str, *, constants: bool = False) -> dict[str, Any]:
    """`read_object` for bytes already read; `location` is the path to name."""
    if not content.strip():
        refuse(["is empty"], location)
    twice: list[str] = []

    def merged(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            twice.extend(f"{quoted(key)} is given twice" for key, value in pairs if mapping[key] != value)
        return mapping

    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a JSON number")

    shallow = bounded.check_json(content, location)
    try:
        raw = json.loads(
            content.decode("utf-8-sig"), object_pairs_hook=merged, parse_constant=None if constants else no_constant
        )
    except UnicodeDecodeError as error:
        refuse([f"is not UTF-8 text (byte {error.start})"], location)
    except json.JSONDecodeError as error:
        refuse([f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"], location)
    except RecursionError:
        refuse([bounded.TOO_DEEP], location)
    except ValueError as error:
        # Python's advice on long integers is for programmers; the part before it says what is wrong.
        refuse([f"is not JSON: {str(error).partition(';')[0]}"], location)
    if twice:
        refuse(twice, location)
    if not shallow:
        bounded.check_depth(raw, location)
    if type(raw) is not dict:
        refuse([f"must hold a JSON object, not {quoted(raw)}"], location)
    return raw
