"""profiles/played.json: the floors of the usual runs of the catalogue's models."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from os import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from qlora_planner.sources.json_files import read_bytes
from qlora_planner.spec.codec import profile_to_json

if TYPE_CHECKING:
    from qlora_planner.planner.survey.played import PlayedRuns
    from qlora_planner.spec.model import ModelProfile

FILE = "played.json"


def digest_of(profile: ModelProfile) -> str:
    """What tells the profile that was played from another one of the same name."""
    return hashlib.sha256(profile_to_json(profile).encode()).hexdigest()[:12]


def played_runs(profile: ModelProfile, workspace_bytes: int, folders: Sequence[Path]) -> PlayedRuns | None:
    """What was played of a model, by the first of the folders of profiles beside which it is; None of a model that was
    not, or whose profile is another one."""
    from qlora_planner.planner.survey.played import PlayedRuns

    for folder in folders:
        row = rows_beside(folder).get(profile.id)
        if row is not None and row["profile"] == digest_of(profile):
            return PlayedRuns.of(row, workspace_bytes)
    return None


def rows_beside(folder: Path) -> Mapping[str, Any]:
    """By model, what played.json beside a folder of profiles has; nothing where there is none, or one that cannot be
    read: it saves time and decides near ties, no more."""
    path = folder.parent / FILE
    try:
        changed = stat(path).st_mtime_ns
    except OSError:
        return {}
    return _rows(path, changed)


@lru_cache(maxsize=4)
def _rows(path: Path, _changed: int) -> Mapping[str, Any]:
    from qlora_planner.planner.survey.played import SCHEMA

    document = msgspec.json.decode(read_bytes(path))
    return document["models"] if document["schema"] == SCHEMA else {}
