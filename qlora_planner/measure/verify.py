"""The parent of a measurement: starts the child, passes its progress on, and leaves nothing running."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from qlora_planner.errors import InputError, MissingError, RunError
from qlora_planner.evidence import Measurement
from qlora_planner.isolation import python_module
from qlora_planner.measure.child import rank_path
from qlora_planner.measure.children import Progress, end_group, heard, spawn
from qlora_planner.measure.ranks import Gathered, launch_command
from qlora_planner.measure.spec import ChildSpec

_STDERR_LINES = 12
_TICK_S = 0.2
CHILD = python_module("qlora_planner.measure.child")


def verify(
    spec: ChildSpec, *, tell: Callable[[Progress], None] = lambda _: None, timeout_s: float | None = None
) -> Measurement:
    """Execute `spec` in a child process and answer with what it measured; `tell` hears of its progress.

    A run out of memory, an error in the libraries and the time limit (`interrupted`) are outcomes of the measurement.
    Raises what `watch` raises; on KeyboardInterrupt too, the child and all that it started are gone before it leaves.
    """
    with closing(watch(spec, timeout_s=timeout_s)) as items:
        for item in items:
            if isinstance(item, Measurement):
                return item
            tell(item)
    raise RunError("the measuring process ended without a measurement")


def watch(spec: ChildSpec, *, timeout_s: float | None = None) -> Generator[Progress | Measurement, None, None]:
    """Progress as it comes, then the Measurement. Closing the iterator ends the child.

    Raises InputError for a specification that the child refuses, MissingError for what it lacks (a package, a driver,
    a card), RunError when it dies without a word (killed for host memory, say).
    """
    with tempfile.TemporaryDirectory(prefix="qlora-plan-verify-") as folder:
        home = Path(folder)
        (home / "spec.json").write_text(json.dumps(spec.to_dict()), encoding="utf-8")
        with (home / "stderr").open("w", encoding="utf-8") as errors:
            child = spawn([*CHILD, str(home / "spec.json"), str(home / "out.json"), "--with-parent"], stderr=errors)
            try:
                timed_out = yield from _progress(child, timeout_s)
            finally:
                end_group(child)
        yield _outcome(spec, home, child.returncode, timed_out, timeout_s)


def verify_ranks(spec: ChildSpec, *, tell: Callable[[Progress], None] = lambda _: None) -> tuple[Measurement, ...]:
    """What each of several ranks measured of one run, by its number; `tell` hears of the first one's progress, and of
    the memory of all.

    A rank that ended without a measurement, as one that others were ended with, has one without readings that says why.
    Raises InputError and MissingError for what the ranks refuse.
    """
    gathered = Gathered(spec.ranks)
    with tempfile.TemporaryDirectory(prefix="qlora-plan-verify-") as folder:
        home = Path(folder)
        written, launch, out = home / "spec.json", home / "accelerate.yaml", home / "out.json"
        written.write_text(json.dumps(spec.to_dict()), encoding="utf-8")
        launch.write_text(str(spec.launch), encoding="utf-8")
        with (home / "stderr").open("w", encoding="utf-8") as errors:
            child = spawn(launch_command(launch, CHILD[-1], str(written), str(out)), stderr=errors)
            try:
                for progress in heard(child, _TICK_S):
                    if progress is not None and not gathered.take(progress):
                        tell(progress)
                    if gathered.over:
                        break
            finally:
                gathered.end()
                end_group(child)
        if gathered.refused is not None:
            refusal = InputError if gathered.refused["exit_code"] == InputError.exit_code else MissingError
            raise refusal(str(gathered.refused["message"]))
        paths = [rank_path(out, rank) for rank in range(spec.ranks)]
        if not any(path.exists() for path in paths):
            last = [
                line for line in (home / "stderr").read_text(encoding="utf-8", errors="replace").splitlines() if line
            ]
            raise RunError("no rank measured anything: " + " | ".join(last[-_STDERR_LINES:]))
        why = str(gathered.facts().get("message") or "it was ended with the others")
        return tuple(
            Measurement.from_dict(json.loads(path.read_text(encoding="utf-8")), "the measuring process")
            if path.exists() else _without_readings(spec, "error", why) for path in paths
        )  # fmt: skip


def _progress(child: subprocess.Popen[str], timeout_s: float | None) -> Generator[Progress, None, bool]:
    """Lines of the child as Progress until it ends; returns whether the time limit came first."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    for progress in heard(child, _TICK_S):
        if deadline is not None and time.monotonic() >= deadline:
            return True
        if progress is not None:
            yield progress
    return False


def _outcome(spec: ChildSpec, home: Path, code: int | None, timed_out: bool, timeout_s: float | None) -> Measurement:
    written = home / "out.json"
    late = f"still running after {timeout_s:g} s" if timed_out else None
    if written.exists():
        measurement = Measurement.from_dict(json.loads(written.read_text(encoding="utf-8")), "the measuring process")
        return (
            replace(measurement, error=late)
            if late is not None and measurement.outcome == "interrupted"
            else measurement
        )
    last = [line for line in (home / "stderr").read_text(encoding="utf-8", errors="replace").splitlines() if line]
    if late is not None:
        return _without_readings(spec, "interrupted", late)
    if code == InputError.exit_code:
        raise InputError(last[-1] if last else "the measuring process refused its specification")
    if code == MissingError.exit_code:
        raise MissingError(last[-1] if last else "the measuring process lacks something")
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (the system ends processes so when host memory runs out)" if name == "SIGKILL" else ""
        return _without_readings(spec, "error", f"the measuring process was ended by {name}{hint}")
    raise RunError(f"the measuring process ended with code {code}: " + " | ".join(last[-_STDERR_LINES:]))


def _without_readings(spec: ChildSpec, outcome: str, message: str) -> Measurement:
    return Measurement(
        created=spec.date,
        model=spec.model_id,
        config_sha256=spec.config_sha256,
        config=spec.config,
        tied_stored=spec.tied_stored,
        run=spec.run,
        outcome=outcome,
        device=spec.device,
        cap_bytes=spec.cap_bytes,
        error=message,
        predicted=spec.predicted,
        role=spec.role,
    )


def with_cap(spec: ChildSpec, cap_bytes: int) -> ChildSpec:
    """The same run under torch's per-process limit `cap_bytes`, without keeping every allocation."""
    return replace(spec, cap_bytes=cap_bytes, snapshot=False)
