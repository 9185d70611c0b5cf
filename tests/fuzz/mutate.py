"""Changes that hurt: bytes turned, cut and repeated; values of JSON put in the place of others; bombs of each kind."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 5, 1.5, 1e308, 10**30, -(10**400), "", "x", "\x1b]52;c;x\x07", "\u202e", "\ud800",
    "9" * 400, [], {}, [[]], [None], {"": None}, ["x"] * 50, {"a": {"b": {"c": []}}}, "nan", "../../x", "\0",
)  # fmt: skip
_TOKENS = (
    b"null", b"NaN", b"Infinity", b"-", b"9" * 5000, b"1e999", b"[" * 2000, b'{"a":' * 500, b"*a", b"&a ", b"<<: ",
    b"!!bool ", b"!!python/object:x ", b"\x00", b"\xff\xfe", b"\x1b[31m", b"\r", b"\xe2\x80\xae", b'"', b"'", b"\\",
    b"\n- ", b"? ", b": ", b"- " * 500, b"\t", b"%", b"GiB", b" in use", b"Tried to allocate ", b"Killed\n" * 300, b",",
)  # fmt: skip


def mutated(seed: bytes, drawn: random.Random) -> bytes:
    """`seed` after one to six changes."""
    found = seed
    if drawn.random() < 0.5:
        found = _of_json(found, drawn)
    for _ in range(drawn.randint(0 if found != seed else 1, 5)):
        found = drawn.choice(_CHANGES)(found, drawn)
    return found


def _of_json(seed: bytes, drawn: random.Random) -> bytes:
    """A value of the document in another's place; the seed where it is no JSON."""
    try:
        raw = json.loads(seed)
    except (ValueError, RecursionError):
        return seed
    for _ in range(drawn.randint(1, 3)):
        raw = _replaced(raw, drawn)
    return json.dumps(raw).encode()


def _replaced(value: Any, drawn: random.Random) -> Any:
    if drawn.random() < 0.15 or not isinstance(value, dict | list) or not value:
        return drawn.choice(ODD)
    if isinstance(value, dict):
        name = drawn.choice(list(value))
        if drawn.random() < 0.1:
            return {key: item for key, item in value.items() if key != name}
        return {**value, name: _replaced(value[name], drawn)}
    place = drawn.randrange(len(value))
    return [*value[:place], _replaced(value[place], drawn), *value[place + 1 :]]


def _turned(seed: bytes, drawn: random.Random) -> bytes:
    if not seed:
        return bytes([drawn.randrange(256)])
    place = drawn.randrange(len(seed))
    return seed[:place] + bytes([drawn.randrange(256)]) + seed[place + 1 :]


def _cut(seed: bytes, drawn: random.Random) -> bytes:
    place, size = drawn.randint(0, len(seed)), drawn.choice((1, 10, 100, len(seed)))
    return seed[:place] + seed[place + size :]


def _put(seed: bytes, drawn: random.Random) -> bytes:
    place = drawn.randint(0, len(seed))
    return seed[:place] + drawn.choice(_TOKENS) + seed[place:]


def _repeated(seed: bytes, drawn: random.Random) -> bytes:
    start = drawn.randint(0, len(seed))
    piece = seed[start : start + drawn.choice((1, 8, 64, 512))]
    times = drawn.choice((2, 20, 2_000))
    return (seed[:start] + piece * times + seed[start:])[: 1 << 20]


_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (_turned, _turned, _cut, _put, _put, _repeated)
