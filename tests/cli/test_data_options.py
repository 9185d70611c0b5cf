"""--data and its options: where they are understood, and what is said while rows are counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_planner.cli.data import counting, summary_from
from qlora_planner.cli.options import flags_and_values
from qlora_planner.cli.values import Output
from qlora_planner.errors import InputError, MissingError
from qlora_planner.report.parts.theme import Theme
from tests.cli.conftest import Invoke


def output(quiet: bool = False) -> Output:
    return Output(json=False, csv=False, every=False, explain=False, quiet=quiet, profiles=None, theme=Theme())


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * length}) + "\n" for length in (8, 4, 12)) + "broken\n")
    return str(path)


def test_they_are_options_of_a_plan(invoke: Invoke) -> None:
    text = invoke("plan", "--help").stdout
    assert "Data options:" in text
    assert {"--data", "--tokenizer", "--chars-per-token", "--bad-rows"} <= flags_and_values()[1]
    done = invoke("llama-3.1-8b", "--gpu", "24GB", "--bad-rows", "ignore")
    assert done.exit_code == 2


def test_bad_rows_are_told_once_on_stderr(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"data": data, "chars_per_token": 4.0, "bad_rows": "skip"}
    found = summary_from(given, "org/model", output())
    assert found is not None
    assert found.lengths.tolist() == [3, 2, 4]
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert "1 of 4 rows cannot be used: line 4" in told.err
    summary_from(given, "org/model", output(quiet=True))
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="--bad-rows skip"):
        summary_from({**given, "bad_rows": "refuse"}, "org/model", output())


def test_the_models_own_tokenizer_is_the_default(data: str) -> None:
    with pytest.raises(MissingError, match=r"^org/never-published: .*--tokenizer DIR"):
        summary_from({"data": data}, "org/never-published", output())
    assert summary_from({"data": None}, "org/never-published", output()) is None


def test_a_terminal_sees_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with counting("train.jsonl", quiet=False) as moved:
        assert moved is None  # nobody watches
    monkeypatch.setattr("qlora_planner.cli.data.on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with counting("train.jsonl", quiet=False) as moved:
        assert moved is not None
        moved(500_000, 1_000_000, 1234)
    told = capsys.readouterr()
    assert "1,234 rows" in told.err
    assert "0.5/1.0 MB" in told.err
    assert told.out == ""
    with counting("train.jsonl", quiet=True) as moved:
        assert moved is None
