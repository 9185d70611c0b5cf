"""A verification or a training as a child process: started, listened to, stopped. torch is the child's alone.

The child is the command line itself (`qlora-plan verify ...`, `qlora-plan train ...`), so that what is watched is what
was copied. It tells its events to a file (`measure.events_file`), talks on stderr, and keeps its run folder as always.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from qlora_planner.isolation import python_module
from qlora_planner.measure.children import spawn
from qlora_planner.measure.events_file import EVENTS_VARIABLE
from qlora_planner.text import short

# A phase that is heard of, and the predicted phases that it holds.
HOLDS: Mapping[str, tuple[str, ...]] = {
    "load": ("load",), "prepare": ("prepare",), "adapters": ("adapters",), "forward": ("forward", "loss"),
    "generate": ("generate",), "backward": ("backward",), "optimizer": ("optimizer",), "eval": ("eval",),
    "save": ("save",),
    "rehearsal": ("generate", "forward", "loss", "backward", "optimizer"),
    "training": ("generate", "forward", "loss", "backward", "optimizer", "eval"),
}  # fmt: skip
_KEPT = 600  # points of a curve
_LOG_LINES = 200
_GRACE_S = 20.0
_DOING = {"train": "training", "verify": "verifying", "side-by-side": "answering"}
_ENDED = {
    0: "finished", 1: "ended: it ran out of memory or is refused", 2: "refused", 3: "something is missing",
    130: "stopped",
}  # fmt: skip


class Launch:
    """One child. `listen` is called by one worker; everything else reads what that found."""

    program: ClassVar[Sequence[str]] = python_module("qlora_planner")

    def __init__(
        self, words: Sequence[str], *, predicted: Mapping[str, Any] | None = None, folder: Path | None = None
    ) -> None:
        self.argv, self.folder = list(words), folder
        self.verb = self.argv[0]
        self.words = _DOING[self.verb]
        self.estimate = predicted
        self.phase = ""
        self.peaks: dict[str, int | None] = {}  # phase, in the order heard of -> most that NVML said in it
        self.step, self.of = 0, 0
        self.compared: Mapping[str, Any] = {}  # what a verification told at its end, as `verify --json` has it
        self.losses: list[float] = []
        self.speeds: list[float] = []
        self.held_out: list[tuple[int, float]] = []
        self.used: list[int] = []
        self.host_bytes: int | None = None
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        self.answer = ""
        self.exit_code: int | None = None
        self.asked_to_stop = 0
        self.began = time.monotonic()
        self.took_s = 0.0
        self._home = Path(tempfile.mkdtemp(prefix="qlora-plan-tui-"))
        self._at = {"events": 0, "stderr": 0}
        self._child: subprocess.Popen[str] | None = None

    @property
    def line(self) -> str:
        """The command line that is run."""
        return shlex.join(["qlora-plan", *self.argv])

    @property
    def on_cpu(self) -> bool:
        """Whether it runs without a card."""
        return ("--device", "cpu") in pairwise(self.argv)

    @property
    def running(self) -> bool:
        """Whether the child has not ended."""
        return self._child is not None and self.exit_code is None

    def start(self) -> None:
        """Start the child, in a group of its own: no key of this terminal reaches it."""
        with (self._home / "stdout").open("wb") as out, (self._home / "stderr").open("wb") as err:
            variables = {EVENTS_VARIABLE: str(self._home / "events"), "PYTHONUNBUFFERED": "1"}
            self._child = spawn([*self.program, *self.argv], stdout=out, stderr=err, variables=variables)

    def listen(self) -> bool:
        """Take in what was told since the last time; whether anything was."""
        if self._child is None:
            return False
        code = self._child.poll()
        heard, said = self._new("events"), self._new("stderr")
        for line in heard:
            self._event(line)
        self.log.extend(short(line.removeprefix("qlora-plan: ")) for line in said)
        if code is not None and self.exit_code is None:
            self.answer = (self._home / "stdout").read_text(encoding="utf-8", errors="replace").rstrip()
            self.took_s = time.monotonic() - self.began
            self.exit_code = 130 if code < 0 and self.asked_to_stop else code
            return True
        return bool(heard or said)

    def stop(self) -> None:
        """Ask once to stop: a training saves a checkpoint after its step. Asked again it stops at once."""
        if self._child is not None and self.running:
            self.asked_to_stop += 1
            with suppress(ProcessLookupError):
                self._child.send_signal(signal.SIGTERM if self.verb == "train" else signal.SIGINT)

    def end(self, grace_s: float = _GRACE_S) -> None:
        """Stop it and wait; what does not go within `grace_s` is made to. Leaves no file of its own behind."""
        if self._child is not None and self._child.poll() is None:
            self.stop()
            try:
                self._child.wait(grace_s)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(self._child.pid, signal.SIGKILL)
                self._child.wait()
        self.listen()
        self._clear()

    def abandon(self) -> None:
        """Ask it to stop and wait for nothing: a training saves its checkpoint and ends by itself."""
        self.stop()
        self._clear()

    def _clear(self) -> None:
        for name in ("events", "stderr", "stdout"):
            (self._home / name).unlink(missing_ok=True)
        with suppress(OSError):
            self._home.rmdir()

    def outcome(self) -> str:
        """How it ended, in a few words; empty while it runs."""
        if self.exit_code is None:
            return ""
        ending = _ENDED.get(self.exit_code, f"failed with exit code {self.exit_code}")
        return f"{ending} after {self.took_s:.0f} s"

    def resume_line(self) -> str | None:
        """The command that goes on with a training that stopped or failed; None where there is nothing to resume."""
        if self.verb != "train" or self.folder is None or self.running or self.exit_code in (0, 2, 3, None):
            return None
        return shlex.join(["qlora-plan", "train", str(self.folder), "--resume"])

    def answers_words(self) -> list[str] | None:
        """The words after `qlora-plan` that answer prompts with what this trained; None where nothing is trained."""
        if self.folder is None or self.running or self.exit_code != 0:
            return None
        return ["side-by-side", str(self.folder), *(["--device", "cpu"] if self.on_cpu else [])]

    def predicted_bytes(self, phase: str) -> int | None:
        """Device bytes that the estimate has for a phase that is heard of; None where it has none."""
        if self.on_cpu:  # the estimate is of a card
            return None
        rows = (self.estimate or {}).get("phases") or ()
        predicted_bytes = {row["name"]: row["device_bytes"] for row in rows}
        sizes = [predicted_bytes[name] for name in HOLDS.get(phase, (phase,)) if predicted_bytes.get(name) is not None]
        return max(sizes, default=None)

    def _new(self, name: str) -> list[str]:
        """Whole lines that a file has grown by."""
        path = self._home / name
        if not path.exists():
            return []
        with path.open("rb") as stream:
            stream.seek(self._at[name])
            data = stream.read()
        whole = data.rfind(b"\n") + 1
        self._at[name] += whole
        return data[:whole].decode("utf-8", errors="replace").splitlines()

    def _event(self, line: str) -> None:
        try:
            fields = json.loads(line)
            event = fields["event"]
        except (ValueError, TypeError, KeyError):  # no line of ours
            return
        hear = getattr(self, f"_on_{event}", None)
        if hear is not None:
            hear(fields)

    def _on_predicted(self, fields: Mapping[str, Any]) -> None:
        self.estimate = fields.get("estimate") or None

    def _on_phase(self, fields: Mapping[str, Any]) -> None:
        self.phase = str(fields.get("phase"))
        self.peaks.setdefault(self.phase, None)

    def _on_memory(self, fields: Mapping[str, Any]) -> None:
        used = fields.get("process_bytes")
        used = fields.get("device_bytes") if used is None else used
        if used is None:
            return
        self.used = [*self.used, int(used)][-_KEPT:]
        if self.phase:
            self.peaks[self.phase] = max(self.peaks[self.phase] or 0, int(used))

    def _on_begin(self, fields: Mapping[str, Any]) -> None:
        self.step, self.of = int(fields["step"]), int(fields["of"])

    def _on_step(self, fields: Mapping[str, Any]) -> None:
        self.step, self.of = int(fields["step"]), int(fields.get("of") or 0)
        for name, curve in (("loss", self.losses), ("tokens_per_s", self.speeds)):
            if fields.get(name) is not None:
                curve.append(float(fields[name]))
                del curve[:-_KEPT]
        self.host_bytes = fields.get("host_peak_bytes") or self.host_bytes

    def _on_compared(self, fields: Mapping[str, Any]) -> None:
        self.compared = fields

    def _on_evaluation(self, fields: Mapping[str, Any]) -> None:
        if fields.get("eval_loss") is not None:
            self.held_out.append((int(fields["step"]), float(fields["eval_loss"])))
