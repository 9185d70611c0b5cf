"""Checkpoints that can be trusted: one is complete when its seal, written last, names every file with its digest."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from qlora_planner.runs.owned import MARK, free_name, is_marked, mark_again, remove_marked, unmark
from qlora_planner.runs.seals import SEAL, read_seal

_NAME = re.compile(r"checkpoint-([0-9]{1,18})")


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
    unmark(folder)


def fault_of(folder: Path) -> str | None:
    """Why a checkpoint cannot be gone on from; None where it is complete and unchanged."""
    if folder.is_symlink():
        return "is a link"
    if not folder.is_dir():
        return "is no folder"
    if not os.path.lexists(folder / SEAL):
        return "was not finished"
    contents = read_seal(folder)
    if contents is None:
        return "has a seal that cannot be read"
    if "trainer_state.json" not in contents.files:
        return "has a seal that names no trainer state"
    if not contents.optimizer:
        return "has a seal that names no optimizer"
    for name, digest in contents.files.items():
        try:
            if _digest(folder / name, sync=False) != digest:
                return f"is damaged: {name} is not what was saved"
        except OSError:
            return f"is damaged: {name} is gone"
    return None


def checkpoints(folder: Path) -> list[Path]:
    """Everything under `folder` that is called as a checkpoint is, complete or not, newest step first."""
    if not folder.is_dir():
        return []
    by_step = [(step_of(path), path) for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return [path for _, path in sorted(by_step, reverse=True)]


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
    """The name of the optimizer whose states a complete checkpoint holds; empty where its seal is gone."""
    contents = read_seal(folder)
    return "" if contents is None else contents.optimizer


def remove_old(folder: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` of the checkpoints that have a seal; nothing else.

    Its mark goes last, its seal first: one that is half removed is seen to be, and to be this run's.
    """
    sealed = [path for path in checkpoints(folder) if not path.is_symlink() and read_seal(path) is not None]
    for path in sealed[keep:]:
        mark_again(path)
        remove_marked(path)


def set_aside(folder: Path, keep: Path | None) -> None:
    """Take what the trainer must not see as a checkpoint out of its sight: it goes on from the newest, and removes the
    oldest unseen.

    Unfinished ones that this run began go; everything else keeps what it holds under another name: what is newer than
    `keep`, and what is no checkpoint of this run at all (no seal, a link, a file).
    """
    kept = -1 if keep is None else step_of(keep)
    for path in checkpoints(folder):
        sealed = not path.is_symlink() and read_seal(path) is not None
        if sealed and step_of(path) <= kept:
            continue
        if is_marked(path) and not os.path.lexists(path / SEAL):
            remove_marked(path)
        else:
            kind = "damaged" if sealed or os.path.lexists(path / SEAL) else "unknown"
            path.rename(free_name(path.with_name(f"{kind}-{path.name}")))


def step_of(path: Path | str) -> int:
    """The optimizer step of a checkpoint, by its name."""
    match = _NAME.fullmatch(Path(path).name)
    return int(match[1]) if match else 0


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(SEAL) and path.name != MARK:
            yield path


def _digest(path: Path, *, sync: bool) -> str:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if sync:
            os.fsync(stream.fileno())
    return digest
