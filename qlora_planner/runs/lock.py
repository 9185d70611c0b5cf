"""One process at a time in the folder of a run: the kernel holds it, so that neither kill -9 nor a pid that comes again
leaves it locked or open."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora_planner.errors import InputError
from qlora_planner.text import plain

_HELD = (errno.EAGAIN, errno.EACCES)


@contextmanager
def held(folder: Path) -> Iterator[int | None]:
    """Hold the folder of a run, which is there, while this process and those that inherit the descriptor live.

    Gives the descriptor; None where nothing can be locked (Windows, a file system without locks). The folder itself is
    locked, so that no file is left behind. Raises InputError where another process holds it.
    """
    if sys.platform == "win32":
        yield None
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        locked: int | None = descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                raise InputError(
                    f"--output: {plain(folder)} is being trained in{_by(descriptor)}; wait for it, stop it with Ctrl-C,"
                    " or name another --output"
                ) from None
            locked = None
        yield locked
    finally:
        os.close(descriptor)


def _by(descriptor: int) -> str:
    """Whose lock it is, where the kernel tells (Linux)."""
    about = os.fstat(descriptor)
    inode = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    try:
        rows = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError):
        return ""
    holders = [row[4] for row in rows if len(row) > 5 and row[1] == "FLOCK" and row[5] == inode and row[4].isdecimal()]
    return f" by process {holders[0]}" if holders and holders[0] != "0" else ""
