"""Reading what anybody may have written, within bounds: of kind, size, depth and count, each named where it is passed.

A path can be a pipe that nobody writes to, a device or an endless file of /proc; a file of kilobytes can hold brackets
by the hundred thousand, or unpack to gigabytes. Whoever reads files from outside reads them through here, and whoever
writes one that others may read meanwhile writes it through here.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, BinaryIO

from qlora_planner.errors import InputError
from qlora_planner.text import plain

# Configs nest a few levels, and Python's own parsers give up at a thousand.
DEEPEST = 64
# A hundred bytes of memory each: the largest index of weights has a hundred thousand.
MOST_VALUES = 1_000_000
TOO_DEEP = f"is nested too deeply (more than {DEEPEST} levels)"
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))


class Unreadable(InputError):
    """A file that cannot be read, and why. `missing` where there is none."""

    def __init__(self, path: object, reason: str, *, missing: bool = False) -> None:
        super().__init__(f"{plain(path)}: {reason}")
        self.reason, self.missing = reason, missing


def read_bytes(path: Path, largest_bytes: int, kind: str = "file of its kind") -> bytes:
    """All of a regular file of at most `largest_bytes`; `kind` says what a larger one cannot be.

    Raises Unreadable, an InputError naming the path.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > largest_bytes:
            raise Unreadable(path, f"is {size >> 20:,} MiB large, so it is no {kind}")
        try:
            content = stream.read(largest_bytes + 1)
        except OSError as error:
            raise Unreadable(path, f"cannot be read: {error.strerror or error}") from None
        if content is None:  # a queue of the kernel without anything in it
            raise Unreadable(path, "has nothing to read now")
        if len(content) > largest_bytes:
            raise Unreadable(path, f"holds more than {largest_bytes >> 20:,} MiB, so it is no {kind}")
    return content


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened for reading without waiting for anybody. Raises Unreadable."""
    try:
        _check_regular(path, os.stat(path).st_mode)  # before it is opened: opening some devices does something
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            _check_regular(path, os.fstat(descriptor).st_mode)
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except (FileNotFoundError, NotADirectoryError):
        raise Unreadable(path, "no such file", missing=True) from None
    except OSError as error:
        raise Unreadable(path, f"cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a path with a null character
        raise Unreadable(path, f"cannot be read: {error}") from None


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` in place of a file, whole or not at all, and make its folder. Raises OSError."""
    import tempfile

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except OSError:
        with suppress(OSError):
            os.unlink(name)
        raise


def _check_regular(path: Path, mode: int) -> None:
    if not S_ISREG(mode):
        raise Unreadable(path, "is a folder" if S_ISDIR(mode) else "is not a regular file")


def check_json(content: bytes, location: object, *, most_values: int = MOST_VALUES) -> bool:
    """Whether JSON is shallow for sure; where not, texts hold brackets, and `check_depth` of what was parsed decides.

    Raises Unreadable naming `location` for more than `most_values` values or DEEPEST levels.
    """
    openers = content.count(b"[") + content.count(b"{")
    if openers + content.count(b",") > most_values:
        raise Unreadable(location, f"holds more than {most_values:,} values")
    if openers <= DEEPEST:
        return True
    # The innermost pairs go with each round; what is left after so many is deeper, or stands in a text.
    left = content.translate(None, _OTHERS)
    for _ in range(DEEPEST):
        left = left.replace(b"[]", b"").replace(b"{}", b"")
        if not left:
            return True
    if b'"' not in content:
        raise Unreadable(location, TOO_DEEP)
    return False


def check_depth(value: Any, location: object) -> None:
    """Raises Unreadable naming `location` for lists and objects inside one another by more than DEEPEST levels."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [item for container in level for item in _containers(container)]
        if not level:
            return
    raise Unreadable(location, TOO_DEEP)


def _containers(value: Any) -> Iterator[Any]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return (item for item in items if isinstance(item, dict | list | tuple))


def unpacked(packed: bytes, largest_bytes: int) -> bytes:
    """What gzip packed, if that is at most `largest_bytes`. Raises ValueError for more, and for what is no gzip."""
    machine = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        content = machine.decompress(packed, largest_bytes + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(content) > largest_bytes:
        raise ValueError(f"it unpacks to more than {largest_bytes >> 20:,} MiB")
    if not machine.eof:
        raise ValueError("it is cut off")
    return content


def small_json(path: Path, largest_bytes: int = 4 << 20) -> Any:
    """A small JSON document of our own or of a library, whatever it holds.

    Raises ValueError for what is no such JSON or passes a bound, OSError for what cannot be read, as `json.load` does.
    """
    import json

    try:
        content = read_bytes(path, largest_bytes)
        shallow = check_json(content, path)
        document = json.loads(content.decode("utf-8"))
        if not shallow:
            check_depth(document, path)
    except Unreadable as error:
        if error.missing:
            raise FileNotFoundError(2, error.reason, str(path)) from None
        raise ValueError(error.reason) from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    return document
