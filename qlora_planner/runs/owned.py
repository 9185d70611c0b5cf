"""What a run wrote and can prove that it wrote: nothing else in its folder is ever removed, nothing through a link.

The proofs: a folder that a run makes for itself holds a mark from its first moment; a finished checkpoint has a seal
that names its files; the adapter's files stand with their digests in run.json.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qlora_planner.errors import InputError, RunError
from qlora_planner.runs.seals import SEAL, read_seal
from qlora_planner.text import plain

MARK = ".qlora-plan"
_MARK = '{"schema": "qlora-plan/mark/1"}'
FILES = (
    "run.json", "run.json.partial", "plan.yaml", "accelerate.yaml", "metrics.jsonl", "summary.json",
    "summary.json.partial", "report.html", "log.txt", "side-by-side.json", "side-by-side.json.partial",
)  # fmt: skip
# Made, marked and emptied by the run itself.
SCRATCH = ("adapter.partial", ".data", ".rehearsal", "logs")
FOLDERS = ("checkpoints", "adapter", *SCRATCH)
# What is left of a file that was being written when the program was ended.
_CUT_OFF = re.compile(r"\.(plan\.yaml|accelerate\.yaml|report\.html)\.\w+\.tmp")
_CHECKPOINT_NAMES = ("checkpoint-", "damaged-checkpoint-", "unknown-checkpoint-")


def mark(folder: Path) -> None:
    """Make `folder` and say in it that a run made it. Raises RunError for one that holds something and has no mark."""
    if os.path.lexists(folder) and not is_marked(folder):
        raise RunError(f"{plain(folder)} is there and was not made by this run; move it away, then go on with --resume")
    _mark(folder)


def _mark(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text(_MARK, encoding="utf-8")


def mark_again(folder: Path) -> None:
    """`mark`, of a checkpoint that is saved once more too: it is unfinished from here on."""
    if is_real_folder(folder) and read_seal(folder) is not None:
        _mark(folder)
        (folder / SEAL).unlink()
    mark(folder)


def is_marked(folder: Path) -> bool:
    """Whether a run made this folder, and it is one: a link never is.

    One without anything in it, or with nothing but the beginning of a mark, counts: so it is when a run is ended while
    it makes or removes one, and nobody loses anything with it.
    """
    if not is_real_folder(folder):
        return False
    mark = folder / MARK
    try:
        names = os.listdir(folder)
        if not names:
            return True
        text = "" if mark.is_symlink() or not mark.is_file() else mark.read_text("utf-8")
    except (OSError, ValueError):
        return False
    return text == _MARK or (names == [MARK] and not mark.is_symlink() and _MARK.startswith(text))


def is_real_folder(path: Path) -> bool:
    """A folder itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def unmark(folder: Path) -> None:
    """The folder is finished: what it holds is proven otherwise from here on."""
    (folder / MARK).unlink(missing_ok=True)


def remove_marked(folder: Path) -> None:
    """Remove a folder that a run made for itself; one that is not there is fine.

    Raises RunError for one without a mark. A link inside goes, what it leads to stays.
    """
    if not os.path.lexists(folder):
        return
    if not is_marked(folder):
        raise RunError(f"{plain(folder)} was not made by this run; move it away, then go on with --resume")
    for path in folder.iterdir():
        if is_real_folder(path):
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()
    unmark(folder)  # last: a run that is ended meanwhile still knows its own
    folder.rmdir()


def free_name(path: Path) -> Path:
    """`path`, or the same with a number behind it where something has that name."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def digests(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file in a folder, but for its mark."""
    names = sorted(str(path.relative_to(folder)) for path in _files(folder))
    return {name: _digest(folder / name) for name in names if name != MARK}


def is_unchanged(folder: Path, written: Mapping[str, Any]) -> bool:
    """Whether a folder holds nothing but files that were written so."""
    try:
        return is_real_folder(folder) and next(_foreign_in_adapter(folder, written), None) is None
    except OSError:
        return False


def proven(folder: Path, written: Mapping[str, Any]) -> tuple[list[Path], list[Path]]:
    """Files to be removed, and folders to be removed when they are empty, inner ones first, of a run in `folder`.

    `written` are the digests of its adapter's files. Raises InputError naming the first thing among them that this
    run did not write, or cannot prove to have written; nothing is changed.
    """
    files: list[Path] = []
    folders: list[Path] = []
    for name in FILES:
        path = folder / name
        if os.path.lexists(path):
            if path.is_symlink() or not path.is_file():
                _refuse(path)
            files.append(path)
    files += [path for path in folder.iterdir() if _CUT_OFF.fullmatch(path.name) and path.is_file()]
    for name in FOLDERS:
        path = folder / name
        if not os.path.lexists(path):
            continue
        if not is_real_folder(path):
            _refuse(path)
        parts = path.iterdir() if name == "checkpoints" else (path,)
        for part in sorted(parts):
            files += _proven_files(part, name, written)
            folders += [*_folders(part), part]
        if name == "checkpoints":
            folders.append(path)
    return files, folders


def remove(files: list[Path], folders: list[Path]) -> None:
    """Remove what `proven` gave; a folder that something was put into meanwhile stays."""
    for path in files:
        path.unlink(missing_ok=True)
    for path in folders:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _proven_files(path: Path, kind: str, written: Mapping[str, Any]) -> list[Path]:
    """The files of one folder of a run. Raises InputError for what is not proven."""
    if kind == "checkpoints" and (not is_real_folder(path) or not path.name.startswith(_CHECKPOINT_NAMES)):
        _refuse(path)
    if is_marked(path):
        return list(_all_but_folders(path))
    if kind == "adapter":
        foreign = next(_foreign_in_adapter(path, written), None)
        if foreign is not None:
            _refuse(foreign)
        return list(_files(path))
    seal = read_seal(path) if kind == "checkpoints" else None
    inside = list(_all_but_folders(path))
    if seal is None:
        if inside:
            _refuse(path)
        return []
    for file in inside:
        if file.is_symlink() or str(file.relative_to(path)) not in (*seal.files, SEAL):
            _refuse(file)
    return inside


def _foreign_in_adapter(path: Path, written: Mapping[str, Any]) -> Iterator[Path]:
    for file in _all_but_folders(path):
        name = str(file.relative_to(path))
        if file.is_symlink() or not file.is_file() or (name != MARK and written.get(name) != _digest(file)):
            yield file


def _refuse(path: Path) -> None:
    raise InputError(
        f"--force: {plain(path)} is not provably what the run there wrote, so nothing is removed; move it away, or name"
        " another --output"
    )


def _all_but_folders(folder: Path) -> Iterator[Path]:
    """Files, links, sockets: everything in a folder but real folders, which are looked into."""
    for path in sorted(folder.iterdir()):
        if is_real_folder(path):
            yield from _all_but_folders(path)
        else:
            yield path


def _folders(folder: Path) -> list[Path]:
    """Real folders under a folder, inner ones first."""
    inner = [path for path in sorted(folder.iterdir()) if is_real_folder(path)]
    return [folder for path in inner for folder in (*_folders(path), path)]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in _all_but_folders(folder) if path.is_file() and not path.is_symlink())


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
