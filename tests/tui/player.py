"""Plays a recorded training in place of `qlora-plan train`: `player.py RECORDING ...`, whatever words follow.

RECORDING holds what QLORA_PLANNER_EVENTS wrote during a real run, behind a first line that says where it was run; the
words of that run are beside it, in a file whose name ends in `-log.txt`. Both are told at once. Then it waits to be
asked to stop.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from qlora_planner.measure.events_file import EVENTS_VARIABLE


class Recording:
    """A file of events and what is known of it."""

    def __init__(self, path: Path) -> None:
        first, *self.events = path.read_text(encoding="utf-8").splitlines()
        self.facts: dict[str, Any] = json.loads(first)
        assert self.facts["event"] == "recorded", f"{path} does not say where it was recorded"
        self.log = path.with_name(path.name.replace("-events.jsonl", "-log.txt")).read_text(encoding="utf-8")

    @property
    def words(self) -> list[str]:
        """The words after `qlora-plan` that were typed."""
        return shlex.split(self.facts["command"])[1:]

    @property
    def title(self) -> str:
        """What stands over a picture of it."""
        return f"qlora-plan tui: a recorded run on an {self.facts['card']}, played"


def main(words: list[str]) -> int:
    """Tell everything, then wait."""
    stopped: list[int] = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopped.append(1))
    recording = Recording(Path(words[0]))
    with Path(os.environ[EVENTS_VARIABLE]).open("a", encoding="utf-8") as stream:
        stream.write("\n".join([*recording.events, ""]))
    sys.stderr.write(recording.log)
    sys.stderr.flush()
    while not stopped:
        time.sleep(0.02)
    return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
