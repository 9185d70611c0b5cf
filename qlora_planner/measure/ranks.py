"""What several ranks tell their parent, brought together: how the run ended, and which rank ended it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qlora_planner.isolation import python_module
from qlora_planner.measure.children import Progress

# After the first bad news: that of the rank that was the cause may come a moment later.
_SETTLE_S, _SAVE_S = 1.0, 60.0


def launch_command(config: Path, module: str, *arguments: str) -> list[str]:
    """What starts `module` once a rank of the accelerate config `config`."""
    return [*python_module("qlora_planner.measure.launcher"), str(os.getpid()), str(config), module, *arguments]


class Gathered:
    """What `world` ranks told. One rank alone is gathered too: it names none."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.results: dict[int, Mapping[str, Any]] = {}
        self.refused: Mapping[str, Any] | None = None
        self._pids: dict[int, int] = {}
        self._lost: list[tuple[int, int]] = []  # process, code
        self._bad: list[int] = []  # ranks with a result other than ok, in the order in which they told
        self._over_at: float | None = None

    def take(self, event: Progress) -> bool:
        """Whether the event was for this, and for nobody else."""
        fields = event.facts
        rank = int(fields.get("rank", 0))
        if event.event == "rank":
            self._pids[rank] = int(fields["pid"])
        elif event.event == "lost":
            if (pid := int(fields["pid"])) in self._pids.values():  # else a tool that the launcher asked something
                self._lost.append((pid, int(fields["code"])))
                self._ends_in(_SETTLE_S)
        elif event.event == "result":
            self.results[rank] = fields
            if fields["outcome"] != "ok":
                self._bad.append(rank)
                self._ends_in(_SAVE_S if fields["outcome"] == "interrupted" else _SETTLE_S)
        elif event.event == "refused":
            self.refused = self.refused or fields
            self._ends_in(_SETTLE_S)
        else:
            return False
        return True

    def _ends_in(self, seconds: float) -> None:
        if self.world > 1 and self._over_at is None:
            self._over_at = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Whether a rank has ended badly, so that the others would wait for it without end."""
        return self._over_at is not None and time.monotonic() >= self._over_at

    def ask(self) -> bool:
        """Ask every rank to stop; False where none has told its process yet."""
        for pid in self._pids.values():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)
        return bool(self._pids)

    def end(self) -> None:
        """End every rank that has told no result: one that waits for another hears of nothing else."""
        for rank, pid in self._pids.items():
            if rank not in self.results and pid not in {lost for lost, _ in self._lost}:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def facts(self) -> Mapping[str, Any]:
        """The result of the run: that of the rank that ended it badly, else the first's, with all of them beside it.

        Empty where no rank told one and none was seen to be lost.
        """
        first = self.results.get(0, {})
        if self.world == 1:
            return first
        every = {"ranks": [self.results[rank] for rank in sorted(self.results)]}
        if (lost := self._lost_rank()) is not None:
            return {**first, **every, **lost}
        if self._bad:
            bad = self.results[self._bad[0]]
            message = bad.get("message")
            named = None if message is None else f"rank {self._bad[0]} of {self.world}: {message}"
            return {**bad, **every, "message": named, "rank": self._bad[0]}
        return {**first, **every} if first else first

    def _lost_rank(self) -> dict[str, Any] | None:
        """Outcome and message of a rank that ended without a word. What ends it with SIGTERM is the launcher, after
        another one."""
        ranks = {pid: rank for rank, pid in self._pids.items()}
        killed = [(pid, code) for pid, code in self._lost if code < 0 and code != -signal.SIGTERM]
        silent = [] if self._bad or self.refused is not None else self._lost
        for pid, code in [*killed, *silent]:
            rank = ranks[pid]
            how = ended_by(code) if code < 0 else f"ended with code {code}; its last words are in log.txt"
            others = "the other was" if self.world == 2 else "the others were"
            message = f"rank {rank} of {self.world} {how}; {others} ended with it"
            return {"outcome": "killed" if code < 0 else "error", "rank": rank, "message": message}
        return None


def ended_by(code: int) -> str:
    """How a process ended whose exit code is the negative number of a signal."""
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (
        " (the system ends processes so when host memory runs out)" if name == "SIGKILL" else ""
    )
