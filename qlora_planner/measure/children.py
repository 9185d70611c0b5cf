"""Children of this program: started apart from the terminal, heard line by line, ended with all that they started."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from typing import IO, Any

from qlora_planner.isolation import child_environment
from qlora_planner.record import record

# A child that is asked to end gets this long before it is made to.
GRACE_S = 3.0
NOWHERE, PIPE = subprocess.DEVNULL, subprocess.PIPE


@record
class Progress:
    """What the child tells: `event` is phase, step, memory or result; `facts` as the child writes them.

    phase: `phase`. begin: `of`, the steps that are to be taken. step: `step` (from 1), `of` and `step_s`. memory:
    `process_bytes` and `device_bytes`, None where NVML gives none. result: `outcome` and `phase`.
    """

    event: str
    elapsed_s: float
    facts: Mapping[str, Any] = field(default_factory=dict)


def spawn(
    command: Sequence[str],
    *,
    stdout: int | IO[Any] = PIPE,
    stderr: int | IO[Any],
    pass_fds: Sequence[int] = (),
    variables: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start a command with a safe import path, `variables` in its environment and nothing to read.

    It has a group of its own: one signal reaches it and whatever it starts, and no key of this terminal does.
    """
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, pass_fds=pass_fds, start_new_session=True,
        env=child_environment(**variables or {}), text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip


def heard(child: subprocess.Popen[str], tick_s: float) -> Iterator[Progress | None]:
    """What the child tells on stdout until it ends; None for a line that is none of its own, and every `tick_s`.

    A wait without end would not hear of Ctrl-C on every platform.
    """
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(child.stdout, lines), daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=tick_s)
        except queue.Empty:
            yield None
            continue
        if line is None:
            child.wait()
            return
        yield _progress(line)


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _progress(line: str) -> Progress | None:
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
