"""Checkpoints that can be trusted: one is complete when its seal, written last, names every file with its digest."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

SEAL = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path, *, optimizer: str) -> None:
    """Make every file of a checkpoint last, then say so in its seal, whole or not at all; `optimizer` made its states.

    Raises OSError where the disk takes it no longer: the checkpoint then stays unsealed.
    """
    files = {str(path.relative_to(folder)): _digest(path, sync=True) for path in _files(folder)}
    partial = folder / (SEAL + ".partial")
    with partial.open("w", encoding="utf-8") as stream:
        json.dump({"optimizer": optimizer, "files": files}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(folder / SEAL)


def fault_of(folder: Path) -> str | None:
    """Why a checkpoint cannot be gone on from; None where it is complete and unchanged."""
    try:
        told = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return "was not finished"
    except (OSError, ValueError, KeyError, TypeError):
        return "has a seal that cannot be read"
    if not isinstance(told, dict) or "trainer_state.json" not in told:
        return "has a seal that names no trainer state"
    for name, digest in told.items():
        try:
            if _digest(folder / name, sync=False) != digest:
                return f"is damaged: {name} is not what was saved"
        except OSError:
            return f"is damaged: {name} is gone"
    return None


def checkpoints(folder: Path) -> list[Path]:
    """Every checkpoint under `folder`, complete or not, newest step first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def newest_complete(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, and a line for each newer one that is not. Nothing is changed."""
    notes: list[str] = []
    for path in checkpoints(folder):
        fault = fault_of(path)
        if fault is None:
            return path, notes
        notes.append(f"{path.name} {fault}: passed over")
    return None, notes


def optimizer_of(folder: Path) -> str:
    """The name of the optimizer whose states a complete checkpoint holds."""
    return str(json.loads((folder / SEAL).read_text(encoding="utf-8"))["optimizer"])


def set_aside(folder: Path, keep: Path | None) -> None:
    """Take what is newer than `keep` out of the trainer's sight: unfinished ones go, damaged ones are renamed."""
    kept = -1 if keep is None else step_of(keep)
    for path in checkpoints(folder):
        if step_of(path) <= kept:
            return
        if (path / SEAL).exists():
            target = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(target, ignore_errors=True)
            path.rename(target)
        else:
            shutil.rmtree(path)


def step_of(path: Path | str) -> int:
    """The optimizer step of a checkpoint, by its name."""
    match = _NAME.fullmatch(Path(path).name)
    return int(match[1]) if match else 0


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(SEAL):
            yield path


def _digest(path: Path, *, sync: bool) -> str:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        if sync:
            os.fsync(stream.fileno())
    return found
