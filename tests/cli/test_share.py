"""`--share` draws the screen that is shown, with the figures of the document."""

from __future__ import annotations

import importlib.util
import json
import re
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest

from qlora_planner.units import GIB
from tests.cli.conftest import Invoke

ASKED = ("qwen2.5-0.5b", "--gpu", "rtx-4090")
CELL = 12.2  # a character's width in the picture


def drawn(path: Path) -> str:
    """The text of a picture, a line for each of the screen."""
    svg = path.read_text(encoding="utf-8")
    ElementTree.fromstring(svg)
    lines: dict[float, str] = {}
    for x, y, text in re.findall(r'<text class="card-r\d+" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', svg):
        lines[float(y)] = lines.get(float(y), "").ljust(round(float(x) / CELL)) + unescape(text).replace("\xa0", " ")
    return "\n".join(lines[y].rstrip() for y in sorted(lines))


def test_a_plan_is_drawn_with_the_figures_of_its_document(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "card.svg"
    document = json.loads(invoke(*ASKED, "--share", str(path), "--json").stdout)
    picture, estimate = drawn(path), document["estimate"]
    peak, usable = (size / GIB for size in (estimate["peak"]["device_bytes"], estimate["fit"]["usable_bytes"]))
    assert f"peak {peak:.2f} GiB of {usable:.2f} GiB usable" in picture
    assert f"{estimate['speed']['tokens_per_s']:,.0f} tokens/s" in picture
    assert "font-family: monospace;" in path.read_text()
    assert "http" not in path.read_text().replace("http://www.w3.org/", "").replace("https://www.textualize.io", "")


def test_a_survey_is_drawn_with_the_figures_of_its_document(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "card.svg"
    document = json.loads(invoke("--gpu", "8GB", "--share", str(path), "--json").stdout)
    longest: dict[str, set[str]] = {}
    for row in document["models"]:
        if row["longest_seq_len"]:
            longest.setdefault(row["model_id"].rpartition("/")[2], set()).add(f"{row['longest_seq_len']:,}")
    shown = [cells for line in drawn(path).splitlines() if (cells := line.split()) and cells[0] in longest]
    assert len(shown) >= 10
    for name, _size, length, *_ in shown:
        assert length in longest[name], name


@pytest.mark.parametrize("asked", [ASKED, ("--gpu", "8GB")], ids=" ".join)
def test_a_picture_that_cannot_be_drawn_is_one_line_before_anything_is_worked_out(
    asked: tuple[str, ...], invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "card.svg"
    there.write_text("mine")
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "cairosvg" else known(name))
    for path, code, says in (
        (there, 2, "--force writes over it"),
        (tmp_path / "card.jpg", 2, "must end in .svg or .png"),
        (tmp_path / "card.png", 3, "pip install cairosvg"),
    ):
        done = invoke(*asked, "--share", str(path))
        assert (done.exit_code, done.stdout) == (code, "")
        assert says in done.stderr and len(done.stderr.splitlines()) == 1
    assert there.read_text() == "mine"
    if asked is ASKED:
        assert invoke(*asked, "--share", str(there), "--force").exit_code == 0
        assert "mine" not in there.read_text()
