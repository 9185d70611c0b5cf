"""The folder of a run: what lies where, and what may never be written over."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_planner.errors import InputError, RunError
from qlora_planner.text import plain, quoted

SCHEMA = "qlora-plan/run/1"
_OURS = ("run.json", "plan.yaml", "metrics.jsonl", "summary.json", "report.html", "log.txt")
_OUR_FOLDERS = ("checkpoints", "adapter", "adapter.partial", "logs", ".data", ".rehearsal")


@dataclass(frozen=True, slots=True)
class RunFolder:
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
    def report(self) -> Path:
        """The same to look at."""
        return self.path / "report.html"


def open_new(folder: RunFolder, *, force: bool) -> None:
    """Make the folder, or empty one of an earlier run with `force`. What is no run's is never removed.

    Raises InputError for a folder that is not empty (without `force`) and for one that cannot be written.
    """
    path = folder.path
    where = plain(path)
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"--output: {where} is a file; name a folder")
        there = any(path.iterdir()) if path.is_dir() else False
        if there and not force:
            if folder.record.is_file():
                raise InputError(
                    f"--output: {where} holds a run already; --resume goes on with it, --force starts it anew"
                )
            raise InputError(
                f"--output: {where} is not empty and no run of ours; name another, or --force writes in it"
            )
        path.mkdir(parents=True, exist_ok=True)
        if there and folder.record.is_file():
            for name in _OUR_FOLDERS:
                shutil.rmtree(path / name, ignore_errors=True)
            for name in _OURS:
                (path / name).unlink(missing_ok=True)
        elif there:
            taken = [name for name in (*_OURS, *_OUR_FOLDERS) if (path / name).exists()]
            if taken:
                raise InputError(f"--output: {where} holds {taken[0]}, which is no run of ours; name another folder")
        _try_writing(path)
    except OSError as error:
        raise InputError(f"--output: {where} cannot be written: {error.strerror or error}") from error


def discard(folder: RunFolder) -> None:
    """Remove what a run that never began has written, and its folder where nothing else is in it."""
    for name in _OUR_FOLDERS:
        shutil.rmtree(folder.path / name, ignore_errors=True)
    for name in _OURS:
        (folder.path / name).unlink(missing_ok=True)
    if not any(folder.path.iterdir()):
        folder.path.rmdir()


def check_writable(folder: RunFolder) -> None:
    """Raises InputError where nothing can be written into the folder of a run that is gone on with."""
    try:
        _try_writing(folder.path)
    except OSError as error:
        where = plain(folder.path)
        raise InputError(f"--output: {where} cannot be written: {error.strerror or error}") from error


def _try_writing(path: Path) -> None:
    probe = path / ".writable"
    probe.write_bytes(b"\n")
    probe.unlink()


def read_record(folder: RunFolder) -> dict[str, Any]:
    """The run.json of an earlier start. Raises InputError where there is none, or it is none of ours."""
    where = plain(folder.record)
    try:
        raw = json.loads(folder.record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"--resume: {plain(folder.path)} holds no run (no run.json); start it without --resume"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"--resume: {where} cannot be read: {plain(error)[:120]}") from None
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else raw
        raise InputError(f"--resume: {where}: schema must be {SCHEMA}, not {quoted(found)}")
    return raw


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all. Raises RunError where the disk does not take it."""
    partial = path.with_name(path.name + ".partial")
    try:
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
