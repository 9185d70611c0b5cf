"""The folder of a run: what lies where, and what may never be written over."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_planner.bounded import small_json
from qlora_planner.errors import InputError, RunError
from qlora_planner.runs.owned import FILES, FOLDERS, digests, free_name, is_marked, is_unchanged, proven, remove, unmark
from qlora_planner.text import plain, quoted

SCHEMA = "qlora-plan/run/1"
ADAPTER_FILES = "adapter_files"  # of run.json: what stands in `adapter`
UNBEGUN = "run.json.partial"  # all that a run leaves which is ended while it writes its first file
_HEAD = 4096
_TEXT, _OBJECT = (str,), (dict,)
_FIELDS: Mapping[str, tuple[type, ...]] = {
    "model": _OBJECT, "model.id": _TEXT, "model.path": _TEXT, "run": _OBJECT, "settings": _OBJECT, "data": _OBJECT,
    "data.path": _TEXT, "data.bad_rows": _TEXT, "data.files": (list,), "tokenizer": (str, type(None)), "device": _TEXT,
    "versions": (dict, type(None)), "rung": (dict, type(None)), ADAPTER_FILES: (dict, type(None)),
    "ranks": (int, type(None)),
}  # fmt: skip
_KINDS: Mapping[tuple[type, ...], str] = {
    _TEXT: "a text", _OBJECT: "an object", (list,): "a list", (str, type(None)): "a text or null",
    (dict, type(None)): "an object or null", (int, type(None)): "a whole number or null",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths in the folder of one run."""

    path: Path

    @property
    def record(self) -> Path:
        """What is trained on what: written before the first attempt."""
        return self.path / "run.json"

    @property
    def plan(self) -> Path:
        """The plan that is run."""
        return self.path / "plan.yaml"

    @property
    def launch(self) -> Path:
        """What `accelerate launch` reads where several ranks are started."""
        return self.path / "accelerate.yaml"

    @property
    def checkpoints(self) -> Path:
        """The trainer's own folder."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The result, with its tokenizer: there when the run has ended."""
        return self.path / "adapter"

    @property
    def logs(self) -> Path:
        """What the trainer's own reporters write."""
        return self.path / "logs"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: steps, evaluations, checkpoints, attempts."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """What was said, and what the libraries printed."""
        return self.path / "log.txt"

    @property
    def summary(self) -> Path:
        """What came of it."""
        return self.path / "summary.json"

    @property
    def answers(self) -> Path:
        """What base and tuned model answered to a few prompts."""
        return self.path / "side-by-side.json"

    @property
    def report(self) -> Path:
        """The same to look at."""
        return self.path / "report.html"


def make(folder: RunDirectory) -> None:
    """The folder itself, if it is not there. Raises InputError where it cannot be made, or is a file."""
    path = folder.path
    if path.exists() and not path.is_dir():
        raise InputError(f"--output: {plain(path)} is a file; name a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output: {plain(path)} cannot be written: {error.strerror or error}") from error


def open_new(folder: RunDirectory, *, force: bool) -> None:
    """Ready the folder for a run, or empty one of an earlier run with `force`: of what that run wrote, and no more.

    Raises InputError for a folder that is not empty (without `force`), one with something in it that would be in the
    way and is not proven to be an earlier run's, and one that cannot be written. Nothing is removed then.
    """
    path = folder.path
    shown = plain(path)
    try:
        there = {entry.name for entry in path.iterdir()} - {UNBEGUN}
        earlier = _own_record(folder) if folder.record.name in there else None
        if there and not force:
            if earlier is not None:
                raise InputError(
                    f"--output: {shown} holds a run already; --resume goes on with it, --force starts it anew"
                )
            if there == {folder.plan.name} and _is_plan(folder.plan):
                raise InputError(f"--output: {shown} holds a plan, and no run was begun there; --force begins one")
            raise InputError(
                f"--output: {shown} is not empty and no run of ours; name another, or --force writes in it"
            )
        if earlier is not None:
            remove(*proven(path, adapter_files(earlier)))
        else:
            taken = sorted(there & {*FILES, *FOLDERS})
            if taken == [folder.plan.name] and _is_plan(folder.plan):
                # A run that was ended before it was begun left it, or somebody wrote it: kept in either case.
                folder.plan.rename(free_name(path / "plan.before.yaml"))
            elif taken:
                raise InputError(f"--output: {shown} holds {taken[0]}, which is no run of ours; name another folder")
        _try_writing(path)
    except OSError as error:
        raise InputError(f"--output: {shown} cannot be written: {error.strerror or error}") from error


def _own_record(folder: RunDirectory) -> dict[str, Any] | None:
    """The run.json that is there; None where it is none of ours."""
    path = folder.record
    try:
        raw = None if path.is_symlink() else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return raw if isinstance(raw, dict) and raw.get("schema") == SCHEMA else None


def adapter_files(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name -> SHA-256 of the adapter's files, as run.json says; empty where it says nothing."""
    files = record.get(ADAPTER_FILES)
    return files if isinstance(files, dict) else {}


def _is_plan(path: Path) -> bool:
    """Whether a file is a plan of ours, by its schema."""
    from qlora_planner.planner.plan import SCHEMA as PLAN_SCHEMA

    try:
        return not path.is_symlink() and PLAN_SCHEMA in path.read_text(encoding="utf-8")[:_HEAD]
    except (OSError, ValueError):
        return False


def discard(folder: RunDirectory) -> None:
    """Remove what a run that never began has written, and its folder where nothing else is in it."""
    with suppress(InputError):  # somebody else's among it: what is proven otherwise is not known then
        remove(*proven(folder.path, {}))
    if not any(folder.path.iterdir()):
        folder.path.rmdir()


def check_layout(folder: RunDirectory) -> None:
    """Raises InputError where a part of a run that is gone on with is a link, or a file in place of a folder.

    What is written, renamed and removed there would be somewhere else.
    """
    for name in (*FILES, *FOLDERS):
        path = folder.path / name
        if path.is_symlink():
            raise InputError(
                f"--resume: {plain(path)} is a link; a run keeps to its own folder: move what it leads to here, or make"
                " the folder of the whole run such a link"
            )
        if os.path.lexists(path) and path.is_dir() != (name in FOLDERS):
            raise InputError(f"--resume: {plain(path)} is {'a folder' if path.is_dir() else 'no folder'}; move it away")


def check_writable(folder: RunDirectory) -> None:
    """Raises InputError where nothing can be written into the folder of a run that is gone on with."""
    try:
        _try_writing(folder.path)
    except OSError as error:
        shown = plain(folder.path)
        raise InputError(f"--output: {shown} cannot be written: {error.strerror or error}") from error


def _try_writing(path: Path) -> None:
    probe = path / ".writable"
    probe.write_bytes(b"\n")
    probe.unlink()


def read_record(folder: RunDirectory) -> dict[str, Any]:
    """The run.json of an earlier start. Raises InputError where there is none, or it is none of ours."""
    shown = plain(folder.record)
    try:
        raw = small_json(folder.record)
    except FileNotFoundError:
        raise InputError(
            f"--resume: {plain(folder.path)} holds no run (no run.json); start it without --resume"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--resume: {shown} cannot be read: {plain(error)[:120]}") from None
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        schema = raw.get("schema") if isinstance(raw, dict) else raw
        raise InputError(f"--resume: {shown}: schema must be {SCHEMA}, not {quoted(schema)}")
    if faults := list(_faults(raw)):
        raise InputError(
            f"--resume: {shown} is damaged: {'; '.join(faults[:4])}; put back what was there, or start anew with"
            " --force"
        )
    return raw


def _faults(raw: Mapping[str, Any]) -> Iterator[str]:
    """What a run is gone on with from, and is not there or of another type."""
    for name, kinds in _FIELDS.items():
        value: Any = raw
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, kinds):
            yield f"{name} must be {_KINDS[kinds]}, not {quoted(value)}"
    device, rows = raw.get("device"), raw.get("data")
    if isinstance(device, str) and device not in ("cuda", "cpu"):
        yield f"device must be cuda or cpu, not {quoted(device)}"
    if isinstance(rows, dict) and isinstance(rows.get("bad_rows"), str) and rows["bad_rows"] not in ("refuse", "skip"):
        yield f"data.bad_rows must be refuse or skip, not {quoted(rows['bad_rows'])}"


def replace_adapter(folder: RunDirectory, partial: Path) -> Path | None:
    """Put a finished adapter, in a folder with a mark, in its place, and its files into run.json.

    One that is there goes, if it is what this run wrote; anything else is kept under another name, which is returned.
    Killed at any moment, what is left is proven and made again. Raises OSError and RunError for a full disk.
    """
    record = _own_record(folder)
    kept = None
    if os.path.lexists(folder.adapter):
        if is_unchanged(folder.adapter, adapter_files(record or {})) or is_marked(folder.adapter):
            shutil.rmtree(folder.adapter)
        else:
            kept = free_name(folder.path / "adapter.kept")
            folder.adapter.rename(kept)
    if record is not None:
        write_json(folder.record, {**record, ADAPTER_FILES: digests(partial)})
    partial.rename(folder.adapter)
    unmark(folder.adapter)
    return kept


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all. Raises RunError where the disk does not take it."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)  # never through a link
        with partial.open("w", encoding="utf-8") as stream:
            json.dump(document, stream, indent=1)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RunError(f"{plain(path)} cannot be written: {error.strerror or error}") from error
