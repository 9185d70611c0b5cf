"""The parent of a measurement: starts the child, passes its progress on, and leaves nothing running."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import field, replace
from pathlib import Path
from typing import Any, TextIO

from qlora_planner.errors import InputError, MissingError, RunError
from qlora_planner.evidence import Measurement
from qlora_planner.isolation import child_environment, python_module
from qlora_planner.measure.spec import ChildSpec
from qlora_planner.record import record

# A child that is asked to end gets this long before it is made to.
GRACE_S = 3.0
_STDERR_LINES = 12
CHILD = python_module("qlora_planner.measure.child")


@record
class Progress:
    """What the child tells: `event` is phase, step, memory or result; `facts` as the child writes them.

    phase: `phase`. begin: `of`, the steps that are to be taken. step: `step` (from 1), `of` and `step_s`. memory:
    `process_bytes` and `device_bytes`, None where NVML gives none. result: `outcome` and `phase`.
    """

    event: str
    elapsed_s: float
    facts: Mapping[str, Any] = field(default_factory=dict)


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
            child = _start(home, errors)
            try:
                timed_out = yield from _progress(child, timeout_s)
            finally:
                end_group(child)
        yield _outcome(spec, home, child.returncode, timed_out, timeout_s)


def _start(home: Path, errors: TextIO) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*CHILD, str(home / "spec.json"), str(home / "out.json"), "--with-parent"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=child_environment(),
        text=True,
        encoding="utf-8",
        start_new_session=True,  # its own group: one signal reaches it and whatever it starts, and no Ctrl-C does
    )


def _progress(child: subprocess.Popen[str], timeout_s: float | None) -> Generator[Progress, None, bool]:
    """Lines of the child as Progress until it ends; returns whether the time limit came first."""
    lines: queue.Queue[str | None] = queue.Queue()
    assert child.stdout is not None
    reader = threading.Thread(target=read_lines, args=(child.stdout, lines), daemon=True)
    reader.start()
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return True
        try:
            # A wait without end would not hear of Ctrl-C on every platform.
            line = lines.get(timeout=0.2 if left is None else min(0.2, left))
        except queue.Empty:
            continue
        if line is None:
            child.wait()
            return False
        progress = parsed_line(line)
        if progress is not None:
            yield progress


def read_lines(stream: TextIO, lines: queue.Queue[str | None]) -> None:
    """Every line of `stream` into the queue, then None: the body of a reading thread."""
    for line in stream:
        lines.put(line)
    lines.put(None)


def parsed_line(line: str) -> Progress | None:
    """What a child told in one line; None for a line that is none of its own."""
    try:
        raw = json.loads(line)
    except ValueError:
        return None
    if not isinstance(raw, dict) or "event" not in raw:
        return None
    fields = {key: value for key, value in raw.items() if key not in ("event", "elapsed_s")}
    return Progress(event=str(raw["event"]), elapsed_s=float(raw.get("elapsed_s") or 0.0), facts=fields)


def end_group(child: subprocess.Popen[str]) -> None:
    """End the child and everything in its group, at once if it does not go by itself. A group already gone is fine."""
    if hasattr(os, "killpg"):
        for sent in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, sent)
            if child.poll() is None and sent is signal.SIGTERM:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(GRACE_S)
    else:
        child.kill()
    child.wait()
    if child.stdout is not None:
        child.stdout.close()


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
