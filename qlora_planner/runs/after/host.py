"""What this machine has left: host memory and disk."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def resident_bytes() -> int:
    """What this process holds of host memory now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def available_bytes() -> int:
    """Host memory that can be had without swapping: the machine's, or what a container's limit leaves."""
    import psutil

    return min(int(psutil.virtual_memory().available), _container_bytes() or 1 << 62)


def _container_bytes() -> int | None:
    """What the limit of this container leaves (control groups, version 2); None without a limit."""
    with suppress(OSError, ValueError):  # no such files, or the word max
        limit = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        # File pages that nobody used lately are given back before anything is killed.
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, limit - used + int(stat.get("inactive_file", 0)))
    return None


def free_disk_bytes(folder: Path) -> int:
    """What can still be written where `folder` is, or will be."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free
