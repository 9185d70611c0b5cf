"""What the pictures in the repository show: measured figures were recorded, and what is made up is called staged."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from qlora_planner.report.parts.labels import mib
from tests.tui.player import Recording
from tests.tui.scenes import RECORDING

ROOT = Path(__file__).parents[2]
PICTURES = sorted([*(ROOT / "docs" / "screenshots").glob("*.svg"), *Path(__file__).parent.rglob("*.svg")])


def text_of(path: Path) -> str:
    """What is written on a picture, spaces made plain."""
    pieces = re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))
    return " ".join(html.unescape(piece).replace("\xa0", " ") for piece in pieces)


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_picture_of_something_measured_says_where_it_was_recorded(path: Path) -> None:
    shown = text_of(path)
    if "MiB by phase" in shown or re.search(r"step \d+/\d+:", shown):
        assert "a recorded run on an NVIDIA H200" in shown
    if "everything that it needs is here" in shown or "rows up to:" in shown:
        assert "staged" in shown


def test_the_watched_training_shows_what_was_recorded() -> None:
    recording = Recording(RECORDING)
    phase = ""
    peaks: dict[str, int] = {}
    losses: list[float] = []
    for event in map(json.loads, recording.events):
        if event["event"] == "phase":
            phase = event["phase"]
        elif event["event"] == "memory":
            used = event["process_bytes"] or event["device_bytes"]  # none before CUDA starts
            peaks[phase] = max(peaks.get(phase, 0), used)
        elif event["event"] == "step":
            losses.append(event["loss"])
    shown = text_of(ROOT / "docs" / "screenshots" / "watch.svg")
    assert all(re.search(rf"\b{mib(peak)}\b", shown) for peak in peaks.values())
    assert f"{losses[-1]:.3f}" in shown
    assert f"step {len(losses)}/40: loss {losses[-1]:.4f}" in shown
    assert "7,481" not in shown
