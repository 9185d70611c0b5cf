"""A run that is gone on with although it is finished: nothing is to be done, and nothing is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlora_planner.bounded import small_json
from qlora_planner.session.training.request import TrainRequest


def finished_summary(request: TrainRequest) -> dict[str, Any] | None:
    """The summary of a run that had ended well and is asked for as it was; None for any other.

    What was given beside it changes nothing.
    """
    record = request.record
    if record is None or not request.folder.adapter.is_dir():
        return None
    summary = _summary(request)
    if summary is None or summary.get("outcome") != "ok":
        return None
    same_data = Path(request.data).absolute() == Path(record["data"]["path"])
    same = request.run.to_dict() == record["run"] and request.settings.to_dict() == record["settings"]
    return summary if same_data and same else None


def _summary(request: TrainRequest) -> dict[str, Any] | None:
    """None where it is not there, cut off or no object: the run then goes on as one that is not finished."""
    try:
        summary = small_json(request.folder.summary)
    except (OSError, ValueError, RecursionError):
        return None
    return summary if isinstance(summary, dict) else None
