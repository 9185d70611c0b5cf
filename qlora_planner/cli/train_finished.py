"""A run that is gone on with although it is finished: nothing is to be done, and nothing is touched."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from qlora_planner.bounded import small_json
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.train_asked import Asked
from qlora_planner.cli.values import Output
from qlora_planner.text import plain


def is_finished(asked: Asked) -> bool:
    """Whether the run had ended well, and is asked for as it was: what was typed beside it changes nothing."""
    record = asked.record
    if record is None or not asked.folder.adapter.is_dir() or (_summary(asked) or {}).get("outcome") != "ok":
        return False
    same_data = Path(asked.data).absolute() == Path(record["data"]["path"])
    return same_data and asked.run.to_dict() == record["run"] and asked.settings.to_dict() == record["settings"]


def tell_finished(asked: Asked, output: Output) -> int:
    """Say so, and how to train on; the exit code."""
    summary, settings = _summary(asked), asked.settings
    assert summary is not None
    if output.json:
        answer_json(summary)
        return 0
    folder = str(asked.folder.path)
    more = (
        f"--epochs {2 * settings.epochs:g}" if settings.max_steps is None else f"--max-steps {2 * settings.max_steps}"
    )
    answer(
        f"{plain(folder)} is finished: {summary.get('steps', '?')} of {summary.get('of', '?')} steps; the adapter is in"
        f" {plain(asked.folder.adapter)}\n"
        f"train on: qlora-plan train {shlex.quote(folder)} --resume {more}"
    )
    return 0


def _summary(asked: Asked) -> dict[str, Any] | None:
    """None where it is not there, cut off or no object: the run then goes on as one that is not finished."""
    try:
        found = small_json(asked.folder.summary)
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
