"""A MODEL that `train` plans first: the plan is that of `plan`, worst batch of the data and all."""

from __future__ import annotations

import json

import click.testing
import pytest

from qlora_planner.catalog.trainers import run_document
from qlora_planner.cli.main import cli
from qlora_planner.session import Session
from qlora_planner.session.training import execute, predictions
from qlora_planner.session.training.onlooker import Onlooker
from qlora_planner.session.training.prepare import Prepared
from qlora_planner.session.training.request import TrainOptions, request_of
from qlora_planner.spec.run import RunConfig
from tests.launch.conftest import Home


def test_both_ways_lead_to_one_plan(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in home.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home.path)
    home.model("llama")
    begun: list[Prepared] = []

    def executed(_session: Session, prepared: Prepared, _onlooker: Onlooker) -> execute.Trained:
        begun.append(prepared)
        return execute.Trained(summary={"outcome": "ok"}, folder=prepared.request.folder, finished_before=True)

    monkeypatch.setattr(execute, "execute", executed)

    def ask(*args: str) -> click.testing.Result:
        result = click.testing.CliRunner().invoke(cli, list(args), prog_name="qlora-plan")
        assert result.exit_code == 0, result.stderr
        return result

    common = ("./llama", "--gpu", "rtx-4090", "--data", home.data.name)
    ask("plan", *common)  # profiles the model: that it was built or is known stands in the plan
    planned = json.loads(ask("plan", *common, "--json").stdout)
    shown = ask("train", *common, "--device", "cpu", "--yes").stderr
    assert json.loads(json.dumps(begun[0].document)) == planned
    assert run_document(begun[0].spec.run) == planned["run"]
    # The longest of all rows has 19 tokens: a sequence is no longer than the data asks for.
    assert planned["data"]["rows"] == 64 and planned["run"]["seq_len"] == 64
    assert "64 rows (messages)" in shown


def test_a_plan_without_data_counts_what_is_quickly_counted(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in home.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home.path)
    home.model("llama")
    request = request_of("./llama", {}, TrainOptions(data=home.data.name))

    def counted() -> predictions.Widths:
        run = RunConfig(batch_size=2, seq_len=64)
        return predictions.counted_widths(Session(), request, run, Onlooker(lambda _: None))

    widths = {width for order in counted() for width in order}
    assert widths and max(widths) < 19  # the longest row has 19 tokens
    monkeypatch.setattr(predictions, "_COUNTED_BYTES", 10)
    assert counted() == ()
