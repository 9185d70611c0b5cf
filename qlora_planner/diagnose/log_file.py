"""What is read of a log or snapshot that somebody names or pipes: its beginning and end, within bounds of memory."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qlora_planner.bounded import Unreadable, open_regular
from qlora_planner.diagnose.oom.snapshot import SNAPSHOT_BYTES, looks_like_snapshot
from qlora_planner.diagnose.oom.text import HEAD_BYTES, TAIL_BYTES
from qlora_planner.errors import InputError
from qlora_planner.text import plain

# A pipe may never end; who waits for more of it than this waits for nothing.
_PIPED_BYTES = 8 << 30
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LogFile:
    """`content` is all of it, or its beginning and its end with a line between that says how much is left out."""

    content: bytes
    size_bytes: int
    left_out_bytes: int = 0


def read_log(log: str) -> LogFile:
    """The file at `log`, or standard input for `-`; a snapshot is read whole.

    Raises InputError for what cannot be read, and for a snapshot of more than SNAPSHOT_BYTES.
    """
    if log == "-":
        return _of_stream(sys.stdin.buffer, None)
    try:
        path = Path(log).expanduser()
        with open_regular(path) as stream:
            return _of_stream(stream, os.fstat(stream.fileno()).st_size)
    except Unreadable as error:
        if error.missing:
            raise InputError(f"{plain(log)}: no such file; give a log, or - and paste the traceback") from None
        raise InputError(f"{plain(log)}: {error.reason}; give a log, or - and pipe it in") from None
    except (OSError, RuntimeError) as error:
        raise InputError(f"{plain(log)}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _of_stream(stream: BinaryIO, size_bytes: int | None) -> LogFile:
    head = stream.read(HEAD_BYTES)
    if looks_like_snapshot(head):
        # One byte more than is allowed tells that there is more.
        content = head + stream.read(SNAPSHOT_BYTES + 1 - len(head))
        return LogFile(content=content, size_bytes=len(content))
    if size_bytes is not None and size_bytes > HEAD_BYTES + TAIL_BYTES:
        stream.seek(size_bytes - TAIL_BYTES)
        tail, read = stream.read(TAIL_BYTES), size_bytes
    else:
        tail, read = _end_of(stream)
        read += len(head)
    left_out = read - len(head) - len(tail)
    between = f"\n[{left_out:,} bytes were not read]\n".encode() if left_out else b""
    return LogFile(content=b"".join((head, between, tail)), size_bytes=read, left_out_bytes=left_out)


def _end_of(stream: BinaryIO) -> tuple[bytes, int]:
    """The last TAIL_BYTES of what is left of a stream, and how much was left."""
    chunks: list[bytes] = []
    kept, read = 0, 0
    while read < _PIPED_BYTES and (chunk := stream.read(_CHUNK_BYTES)):
        chunks.append(chunk)
        kept += len(chunk)
        read += len(chunk)
        while kept - len(chunks[0]) >= TAIL_BYTES:
            kept -= len(chunks.pop(0))
    return b"".join(chunks)[-TAIL_BYTES:], read
