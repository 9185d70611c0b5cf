"""A reader of pickles that hold plain data alone: it knows no instruction that imports, calls or refers outside.

Python's own unpickler, told to import nothing, still gives gigabytes to a file of bytes: a memo with a large index, a
byte array with a large length, keys whose hashes collide. This one counts what it makes, takes text alone as keys, and
puts things into the memo one after the other, as every pickler does.
"""

from __future__ import annotations

import re
import struct
import time
from typing import Any

# What the objects of a file may take, by the estimates below, how many instructions are followed, and for how long.
MOST_OBJECT_BYTES = 200 << 20
MOST_INSTRUCTIONS = 12_000_000
MOST_SECONDS = 4.0
_DEEPEST = 200
_LONGEST_TEXT = 1 << 16
_MOST_STACKED = 4_000_000
# Of CPython's objects: an int, a list or tuple, a slot of one, a dict, a pair in one, a text.
_INT, _LIST, _SLOT, _DICT, _PAIR, _TEXT = 32, 64, 9, 64, 56, 56
_CHECKED_EVERY = 1 << 15
# A stack of an event's frames is a run of references to what was seen before: taken at once.
_GETS = re.compile(rb"(?:\x68.){1,4096}+", re.DOTALL)
_LONG_GETS = re.compile(rb"(?:\x6a....){1,4096}+", re.DOTALL)
_NOT_PLAIN = {
    0x52: "a call", 0x62: "a state", 0x63: "an import", 0x69: "an instance", 0x6F: "an object", 0x81: "an object",
    0x92: "an object", 0x93: "an import", 0x50: "data outside", 0x51: "data outside", 0x82: "an extension",
    0x83: "an extension", 0x84: "an extension", 0x8E: "bytes", 0x8F: "a set", 0x90: "a set", 0x91: "a set",
    0x96: "a byte array", 0x97: "a buffer", 0x98: "a buffer",
}  # fmt: skip


class NotPlain(ValueError):
    """No pickle of plain data, or one that passes a bound."""


def load_plain(data: bytes) -> Any:
    """The value of a pickle of dicts with text as keys, lists, tuples, texts, numbers and None.

    Raises NotPlain for everything else, in time and memory that the bounds above limit.
    """
    try:
        return _run(data)
    except IndexError:
        raise NotPlain("it is cut off or damaged") from None
    except (struct.error, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise NotPlain(f"it is damaged ({type(error).__name__})") from None


def _run(data: bytes) -> Any:
    stack: list[Any] = []
    outer: list[list[Any]] = []
    memo: list[Any] = []
    at, held, followed, ends_s = 0, 0, 0, time.process_time() + MOST_SECONDS
    while True:
        followed += _CHECKED_EVERY
        if followed > MOST_INSTRUCTIONS + _CHECKED_EVERY:
            raise NotPlain(f"it has more than {MOST_INSTRUCTIONS:,} instructions")
        if time.process_time() > ends_s:
            raise NotPlain(f"it takes more than {MOST_SECONDS:g} s to read")
        if held + _SLOT * (len(stack) + len(memo)) > MOST_OBJECT_BYTES:
            raise NotPlain(f"it asks for more than {MOST_OBJECT_BYTES >> 20} MiB of memory")
        for _ in range(_CHECKED_EVERY):
            code = data[at]
            at += 1
            if code == 0x68 or code == 0x6A:  # BINGET, LONG_BINGET
                run = (_GETS if code == 0x68 else _LONG_GETS).match(data, at - 1)
                if run is None:
                    raise NotPlain("it is cut off")
                at = run.end()
                stack.extend(_remembered(memo, run[0], code))
                if len(stack) > _MOST_STACKED:
                    raise NotPlain(f"it has more than {_MOST_STACKED:,} values in one list")
            elif code == 0x94:  # MEMOIZE
                memo.append(stack[-1])
            elif code == 0x4B:  # BININT1
                stack.append(data[at])
                at += 1
            elif code == 0x4D:  # BININT2
                stack.append(data[at] | data[at + 1] << 8)
                at += 2
                held += _INT
            elif code == 0x4A:  # BININT
                stack.append(struct.unpack_from("<i", data, at)[0])
                at += 4
                held += _INT
            elif code == 0x8A:  # LONG1
                size = data[at]
                if size > 16:
                    raise NotPlain("it has a whole number of more than 16 bytes")
                stack.append(int.from_bytes(_cut(data, at + 1, size), "little", signed=True))
                at += 1 + size
                held += _INT + size
            elif code == 0x8C or code == 0x58 or code == 0x8D:  # SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
                width = 1 if code == 0x8C else 4 if code == 0x58 else 8
                size = int.from_bytes(_cut(data, at, width), "little")
                if size > _LONGEST_TEXT:
                    raise NotPlain(f"it has a text of more than {_LONGEST_TEXT:,} bytes")
                stack.append(_cut(data, at + width, size).decode("utf-8", "surrogatepass"))
                at += width + size
                held += _TEXT + 4 * size
            elif code == 0x7D:  # EMPTY_DICT
                stack.append({})
                held += _DICT
            elif code == 0x5D:  # EMPTY_LIST
                stack.append([])
                held += _LIST
            elif code == 0x28:  # MARK
                outer.append(stack)
                stack = []
                if len(outer) > _DEEPEST:
                    raise NotPlain(f"it is nested more than {_DEEPEST} levels deep")
            elif code == 0x75 or code == 0x73:  # SETITEMS, SETITEM
                items = stack if code == 0x75 else [stack.pop(-2), stack.pop()]
                if code == 0x75:
                    stack = outer.pop()
                held += _PAIR * len(items) // 2
                _set(stack[-1], items)
            elif code == 0x65:  # APPENDS
                items, stack = stack, outer.pop()
                held += _SLOT * len(items)
                _list(stack[-1]).extend(items)
            elif code == 0x61:  # APPEND
                item = stack.pop()
                held += _SLOT
                _list(stack[-1]).append(item)
            elif code == 0x29:  # EMPTY_TUPLE
                stack.append(())
            elif 0x85 <= code <= 0x87:  # TUPLE1 to TUPLE3
                count = code - 0x84
                if len(stack) < count:
                    raise NotPlain("it is cut off or damaged")
                stack[-count:] = [tuple(stack[-count:])]
                held += _LIST + _SLOT * count
            elif code == 0x74:  # TUPLE
                items, stack = stack, outer.pop()
                held += _LIST + _SLOT * len(items)
                stack.append(tuple(items))
            elif code == 0x4E:  # NONE
                stack.append(None)
            elif code == 0x88 or code == 0x89:  # NEWTRUE, NEWFALSE
                stack.append(code == 0x88)
            elif code == 0x47:  # BINFLOAT
                stack.append(struct.unpack_from(">d", data, at)[0])
                at += 8
                held += _INT
            elif code == 0x71 or code == 0x72:  # BINPUT, LONG_BINPUT
                width = 1 if code == 0x71 else 4
                _put(memo, int.from_bytes(_cut(data, at, width), "little"), stack[-1])
                at += width
            elif code == 0x95:  # FRAME
                at += 8
            elif code == 0x80:  # PROTO
                at += 1
            elif code == 0x2E:  # STOP
                return stack[-1]
            else:
                raise NotPlain(_refused(code, stack))


def _remembered(memo: list[Any], run: bytes, code: int) -> list[Any]:
    if code == 0x68:
        return [memo[index] for index in run[1::2]]
    return [memo[index] for (index,) in struct.iter_unpack("<xI", run)]


def _cut(data: bytes, at: int, size: int) -> bytes:
    part = data[at : at + size]
    if len(part) < size:
        raise NotPlain("it is cut off")
    return part


def _put(memo: list[Any], index: int, value: Any) -> None:
    """Picklers number what they remember from 0 on, torch's own from 1 at times."""
    if index > len(memo) + 1:
        raise NotPlain("its memo is out of order")
    while len(memo) <= index:
        memo.append(value)
    memo[index] = value


def _list(target: Any) -> list[Any]:
    if type(target) is not list:
        raise NotPlain("it adds items to what is no list")
    return target


def _set(target: Any, items: list[Any]) -> None:
    if type(target) is not dict or len(items) % 2:
        raise NotPlain("it adds pairs to what is no dict")
    keys = items[::2]
    for key in keys:
        if type(key) is not str:
            raise NotPlain("it has a key that is no text")
    target.update(zip(keys, items[1::2], strict=True))


def _refused(code: int, stack: list[Any]) -> str:
    if code == 0x93 and len(stack) > 1 and all(isinstance(operand, str) for operand in stack[-2:]):
        return f"it wants {stack[-2][:60]}.{stack[-1][:60]}, and a snapshot is plain data"
    return f"it wants {_NOT_PLAIN.get(code, f'instruction {code:#04x}')}, and a snapshot is plain data"
