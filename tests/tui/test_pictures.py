"""What the pictures in the repository show: measured figures were recorded, and what is made up is called staged."""

from __future__ import annotations

import html
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from benchmarks.moving_picture import STORIES, joined
from qlora_planner.report.parts.labels import mib
from qlora_planner.session import Session
from qlora_planner.tui.screens.base import PLACES
from qlora_planner.units import GIB
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
    shown = shown_at(ROOT / "docs" / "screenshots" / "train.svg", 1)
    assert all(re.search(rf"\b{mib(peak)}\b", shown) for peak in peaks.values())
    assert f"{losses[-1]:.3f}" in shown
    assert f"step {len(losses)}/40: loss {losses[-1]:.4f}" in shown
    assert "7,481" not in shown


def shown_at(path: Path, index: int) -> str:
    """What is written on a picture that moves, at one of its pictures."""
    root = ElementTree.parse(path).getroot()
    seen = []
    for group in root.iter("{http://www.w3.org/2000/svg}g"):
        span = re.fullmatch(r"s(\d+)-(\d+)", group.get("class", ""))
        if span and int(span[1]) <= index < int(span[2]):
            seen += [text.text or "" for text in group.iter("{http://www.w3.org/2000/svg}text")]
    return " ".join(seen).replace("\xa0", " ")


@pytest.mark.parametrize(("index", "batch", "verdict"), [(2, 1, "✓ fits"), (3, 2, "✓ fits"), (4, 4, "✗ does not fit")])
def test_the_moving_picture_shows_the_figures_of_estimate(index: int, batch: int, verdict: str) -> None:
    shown = shown_at(ROOT / "docs" / "screenshots" / "turn.svg", index)
    answer = Session(stored_only=True).on("12GB").estimate("llama-3.1-8b", batch_size=batch, grad_accum=16)
    assert verdict in shown
    assert mib(answer.peak.device_bytes) in shown
    assert f"{answer.peak.device_bytes / GIB:.2f} GiB of" in shown


def test_the_moving_picture_ends_with_a_run_that_fits() -> None:
    path = ROOT / "docs" / "screenshots" / "turn.svg"
    assert "f: the best that fits" in shown_at(path, 5)
    assert "✓ fits" in shown_at(path, 5)
    assert "162 fits" not in shown_at(path, 5)


@pytest.mark.parametrize("place", [key for key, _ in PLACES])
def test_every_place_has_a_recording_that_the_guide_shows(place: str) -> None:
    guide = (ROOT / "docs" / "explorer.md").read_text(encoding="utf-8")
    assert f"](screenshots/{place}.svg)" in guide
    path = ROOT / "docs" / "screenshots" / f"{place}.svg"
    chapters = len(STORIES[place].chapters)
    assert len({shown_at(path, at) for at in range(chapters)}) == chapters > 1
    assert path.stat().st_size < 150_000


def test_pictures_joined_write_a_row_that_stays_once() -> None:
    pictures = [Console(record=True, width=20, file=io.StringIO()) for _ in range(2)]
    for console, word in zip(pictures, ("before", "behind"), strict=True):
        console.print(f"always\n{word}")
    text = joined([console.export_svg(title="t") for console in pictures], [1.0, 3.0])
    assert text.count("always") == 1
    assert text.count("before") == text.count("behind") == 1
    assert "25.00%" in text, "the second picture begins after a quarter of the time"
