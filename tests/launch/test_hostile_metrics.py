"""metrics.jsonl as a damaged disk or somebody else may have left it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from qlora_planner.runs.record import read_metrics


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.fault("a metrics.jsonl of 30,000 attempts", does="read within seconds", exit="-", part="outside")
def test_thirty_thousand_attempts_are_read_at_once(tmp_path: Path) -> None:
    """Each attempt went through all lines before it: 41 s for a megabyte."""
    path = written(tmp_path / "metrics.jsonl", [{"kind": "attempt", "number": 1, "from_step": 0}] * 30_000)
    begun = time.monotonic()
    assert len(read_metrics(path)) == 30_000
    assert time.monotonic() - begun < 5


def test_steps_that_were_done_again_count_once_and_others_stay(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"kind": "attempt", "number": 1, "from_step": 0}, {"kind": "checkpoint", "step": 1},
        {"kind": "checkpoint", "step": 2}, {"kind": "checkpoint", "step": 3}, {"kind": "odd", "step": None},
        {"kind": "attempt", "number": 2, "from_step": 2}, {"kind": "checkpoint", "step": 3},
        {"kind": "attempt", "number": 3, "from_step": 1}, {"kind": "checkpoint", "step": 2},
    ]  # fmt: skip
    kept = read_metrics(written(tmp_path / "metrics.jsonl", rows))
    assert [(row["kind"], row.get("step", row.get("number"))) for row in kept] == [
        ("attempt", 1), ("checkpoint", 1), ("odd", None), ("attempt", 2), ("attempt", 3), ("checkpoint", 2)
    ]  # fmt: skip
