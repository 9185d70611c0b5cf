"""What a measuring or a training child tells, passed on to whoever watches from outside.

QLORA_PLANNER_EVENTS names a file; `verify` and `train` add one JSON object a line to it, as the child writes them
(`{"event": ..., "elapsed_s": ..., ...}`), before them `predicted` with the estimate and `attempt` with its number;
at its end `verify` adds `compared`, every figure predicted and measured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlora_planner.measure.children import Progress

# Names a file, to which every event of the child is added, one JSON object a line.
EVENTS_VARIABLE = "QLORA_PLANNER_EVENTS"
_SILENT = ("tick",)


def pass_on(progress: Progress) -> None:
    """One event of a child."""
    if progress.event not in _SILENT:
        tell(progress.event, {"elapsed_s": progress.elapsed_s, **progress.facts})


def tell(event: str, fields: Mapping[str, Any]) -> None:
    """One line, where somebody watches. One that cannot be written is lost: a watcher must not end a run."""
    path = os.environ.get(EVENTS_VARIABLE)
    if path:
        with suppress(OSError), open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"event": event, **fields}) + "\n")
