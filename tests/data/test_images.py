"""Rows that hold more than text: known by their columns, by the parts of their messages, by placeholders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.data import summarise
from qlora_planner.data.images import holds_images
from tests.cli.conftest import Invoke, invoke  # noqa: F401

TEXT = [{"role": "user", "content": "look"}, {"role": "assistant", "content": "yes"}]
IMAGES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "x"}]}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "video", "video": "a.mp4"}]}]},
    {"messages": TEXT, "images": ["a.png"]},
    {"messages": TEXT, "image": {"bytes": "..", "path": None}},
    {"conversations": [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a dog"}]},
    {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "completion": TEXT[1:]},
    {"instruction": "<image> what is it?", "output": "a dog"},
    {"text": "USER: <image>\nwhat is it?"},
]
PLAIN: list[dict[str, Any]] = [
    {"messages": TEXT},
    {"messages": TEXT, "images": [], "image": None},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a < b and an image of it"}]}]},
    {"text": "an <img src='a.png'> in HTML"},
    {"prompt": "draw an image", "completion": "no"},
    {"conversations": [{"from": "human", "value": "image"}]},
    {"input_ids": [1, 2, 3]},
]


@pytest.mark.parametrize("row", IMAGES)
def test_a_row_with_an_image_is_known(row: dict[str, Any]) -> None:
    assert holds_images(row)


@pytest.mark.parametrize("row", PLAIN)
def test_a_row_of_text_is_not_taken_for_one(row: dict[str, Any]) -> None:
    assert not holds_images(row)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Two chats with images and one without."""
    path = tmp_path / "rows.jsonl"
    chats = [IMAGES[0], {"messages": TEXT}, IMAGES[3]]
    path.write_text("".join(json.dumps(row) + "\n" for row in chats))
    return path


def test_the_summary_counts_them(rows: Path) -> None:
    found = summarise(rows, chars_per_token=4)
    assert (found.rows, found.image_rows) == (3, 2)
    assert found.to_dict()["image_rows"] == 2
    assert [thing.direction for thing in found.unmodelled] == ["up"]


def test_a_plan_over_images_gives_no_verdict(invoke: Invoke, rows: Path) -> None:  # noqa: F811
    args = ("llama-3.1-8b", "--gpu", "rtx-3090", "--data", str(rows), "--chars-per-token", "4")
    result = invoke(*args)
    assert result.exit_code == 5, result.stderr
    assert "cannot say" in result.stdout.splitlines()[0]
    assert "2 of 3 rows hold images, video or sound" in " ".join(result.stdout.split())
    document = json.loads(invoke(*args, "--compare", "80GB", "--json").stdout)
    assert document["estimate"]["fit"]["verdict"] == "cannot-say"
    assert document["estimate"]["partial"] is True
    assert document["data"]["image_rows"] == 2
    assert (document["compared"][0]["verdict"], document["smallest_card"]) == ("cannot-say", None)


def test_the_same_rows_without_images_are_planned(invoke: Invoke, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": TEXT}) + "\n")
    result = invoke("llama-3.1-8b", "--gpu", "rtx-3090", "--data", str(path), "--chars-per-token", "4", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["estimate"]["unmodelled"] == []
