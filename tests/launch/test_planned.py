"""A MODEL that `train` plans first: the plan is that of `plan`, worst batch of the data and all."""

from __future__ import annotations

import json
from typing import Any

import click.testing
import pytest

from qlora_planner.cli.main import cli
from qlora_planner.cli.train_asked import SETTINGS, asked_from
from qlora_planner.cli.train_run import _counted
from qlora_planner.cli.values import output_from
from qlora_planner.spec.run import RunConfig
from tests.launch.conftest import Home

GIVEN = ("data", "output", "weights", "tokenizer", "bad_rows", "device", "resume", *SETTINGS)


def test_both_ways_lead_to_one_plan(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in home.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home.path)
    home.model("llama")
    found: list[Any] = []
    monkeypatch.setattr("qlora_planner.cli.train.execute", lambda *given: found.append(given) or 0)

    def ask(*args: str) -> click.testing.Result:
        result = click.testing.CliRunner().invoke(cli, list(args), prog_name="qlora-plan")
        assert result.exit_code == 0, result.stderr
        return result

    common = ("./llama", "--gpu", "rtx-4090", "--data", home.data.name)
    ask("plan", *common)  # profiles the model: that it was built or is known stands in the plan
    planned = json.loads(ask("plan", *common, "--json").stdout)
    shown = ask("train", *common, "--device", "cpu", "--yes").stderr
    _, spec, _, _, document, *_ = found[0]
    assert json.loads(json.dumps(document)) == planned
    assert spec.run.to_dict() == planned["run"]
    # The longest of all rows has 19 tokens: a sequence is no longer than the data asks for.
    assert planned["data"]["rows"] == 64 and planned["run"]["seq_len"] == 64
    assert "64 rows (messages)" in shown


def test_a_plan_without_data_counts_what_is_quickly_counted(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in home.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home.path)
    home.model("llama")
    asked = asked_from("./llama", {}, dict.fromkeys(GIVEN) | {"data": home.data.name, "resume": False})
    output = output_from({"quiet": True})
    found = _counted(asked, RunConfig(batch_size=2, seq_len=64), output)
    widths = {width for order in found for width in order}
    assert widths and max(widths) < 19  # the longest row has 19 tokens
    monkeypatch.setattr("qlora_planner.cli.train_run._COUNTED_BYTES", 10)
    assert _counted(asked, RunConfig(batch_size=2, seq_len=64), output) == ()
