"""Evidence on disk: one line each, whole or not at all, and faults that name file and line."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qlora_planner.errors import InputError, RunError
from qlora_planner.evidence.calibration import TRACED, Calibration
from qlora_planner.sources.evidence import append, read_all, read_calibration, shared_path, write_calibration
from tests.evidence.made import measured


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "evidence.jsonl"
    assert read_all(path) == []
    rows = [measured(created=f"2026-11-{day}") for day in (20, 21, 22)]
    for row in rows:
        append(path, row)
    assert read_all(path) == rows
    assert len(path.read_text().splitlines()) == 3


def test_writers_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "evidence.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda day: append(path, measured(created=f"2026-11-{day}")), range(10, 30)))
    assert sorted(row.created for row in read_all(path)) == [f"2026-11-{day}" for day in range(10, 30)]


def test_a_line_that_was_cut_short_does_not_take_the_next_with_it(tmp_path: Path) -> None:
    path = tmp_path / "evidence.jsonl"
    path.write_text('{"schema": "qlora-pl')
    append(path, measured())
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1])["model"] == "org/model-7b"
    with pytest.raises(InputError, match=r"evidence\.jsonl:1"):
        read_all(path)


@pytest.mark.parametrize("bad", ["[]", "{", '{"schema": "x"}', "\x00", '{"schema": "qlora-plan/measurement/1"}'])
def test_a_bad_line_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "evidence.jsonl"
    append(path, measured())
    with path.open("a") as file:
        file.write(bad + "\n")
    with pytest.raises(InputError, match=r"evidence\.jsonl:2"):
        read_all(path)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        append(tmp_path / "file" / "evidence.jsonl", measured())
    with pytest.raises(RunError, match="file"):
        write_calibration(tmp_path / "file" / "user.json", Calibration(created="2026-11-24"))


def test_saved_evidence_has_a_file_for_each_card(tmp_path: Path) -> None:
    assert shared_path(tmp_path, measured()) == tmp_path / "measurements" / "rtx-4090-verified.jsonl"
    assert shared_path(tmp_path, measured(gpu=None)).name == "cpu-verified.jsonl"


def test_calibrations_of_several_folders_are_one(tmp_path: Path) -> None:
    assert read_calibration([tmp_path]) is None
    first, second = tmp_path / "first", tmp_path / "second"
    write_calibration(first / "user.json", Calibration(created="b", residuals={TRACED: {"reserved": (0.5,)}}))
    write_calibration(second / "h200.json", Calibration(created="a", residuals={TRACED: {"reserved": (0.1, 0.9)}}))
    # A file of the same name further on is the same calibration in another place.
    write_calibration(second / "user.json", Calibration(created="c", residuals={TRACED: {"reserved": (0.7,)}}))
    found = read_calibration([first, second])
    assert found is not None
    assert found.residuals[TRACED]["reserved"] == (0.1, 0.5, 0.9)


def test_a_bad_calibration_is_named(tmp_path: Path) -> None:
    (tmp_path / "user.json").write_text("{}")
    with pytest.raises(InputError, match=r"user\.json"):
        read_calibration([tmp_path])
