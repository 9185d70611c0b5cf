"""The seal of a checkpoint, as it can be read from a disk on which anything may have happened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from qlora_planner.record import record

SEAL = "complete.json"
# Some dozens of names and digests are a few KiB.
_MOST_BYTES = 4 << 20


@record
class Seal:
    """What a finished checkpoint holds: the optimizer whose states are in it (empty where the seal does not name it),
    and its files with their digests."""

    optimizer: str
    files: Mapping[str, str]


def read_seal(folder: Path) -> Seal | None:
    """The seal of a checkpoint; None for what is none, whatever is there in its place."""
    path = folder / SEAL
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return None
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(raw, dict) or not isinstance(raw.get("optimizer", ""), str):
        return None
    files = raw.get("files")
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        return None
    return Seal(optimizer=raw.get("optimizer", ""), files=files) if all(map(_inside, files)) else None


def _inside(name: Any) -> bool:
    """A name that stays in its folder and can be one."""
    parts = PurePosixPath(name).parts
    return bool(parts) and "\0" not in name and ".." not in parts and not PurePosixPath(name).is_absolute()
