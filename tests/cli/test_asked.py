"""Asked runs stay asked: what does not fit as it was typed is said so, with the nearest run that does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_planner import Session
from qlora_planner.catalog.trainers import run_document
from qlora_planner.errors import InputError, NothingFitsError, RefusedError
from qlora_planner.session.measuring.this_card import ThisCard
from qlora_planner.spec.run import RunConfig
from tests.cli.conftest import Invoke

MODEL = "meta-llama/Llama-3.1-8B"
TOO_LONG = ("--gpu", "rtx-4090", "--seq-len", "120000", "--rank", "32")


def document(invoke: Invoke, *args: str, code: int) -> dict[str, Any]:
    result = invoke(*args, "--json")
    assert result.exit_code == code, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module")
def asked() -> dict[str, Any]:
    plan: dict[str, Any] = Session().on("rtx-4090").plan(MODEL, seq_len=120_000, rank=32).to_dict()
    return plan


def test_a_plan_keeps_what_was_typed_and_exits_with_1(invoke: Invoke, asked: dict[str, Any]) -> None:
    found = document(invoke, MODEL, *TOO_LONG, code=1)
    assert (found["run"]["seq_len"], found["run"]["rank"]) == (120_000, 32)
    assert found["estimate"]["fit"]["verdict"] == "does-not-fit"
    nearest = RunConfig(**found["nearest"])
    assert nearest.rank == 32 and 20_000 < nearest.seq_len < 120_000
    assert found["nearest_change"] == {"seq_len": nearest.seq_len}
    assert found["nearest_estimate"]["fit"]["verdict"] == "fits"
    assert found["nearest"] == asked["nearest"]


def test_the_screen_says_it_in_one_line_and_what_takes_it(invoke: Invoke) -> None:
    result = invoke(MODEL, *TOO_LONG, "--no-color")
    text = " ".join(result.stdout.split())
    assert "✗ does not fit: meta-llama/Llama-3.1-8B on RTX 4090" in text
    assert "does not fit as asked; the nearest that does: --seq-len " in text
    assert "(asked: --seq-len 120000)" in text
    command = next(line for line in result.stdout.splitlines() if line.startswith("next: ")).split()[2:]
    assert command[-1] == "--adjust"
    assert invoke(*command).exit_code == 0


def test_adjust_takes_the_nearest_and_says_what_it_changed(invoke: Invoke, asked: dict[str, Any]) -> None:
    found = document(invoke, MODEL, *TOO_LONG, "--adjust", code=0)
    assert found["run"] == run_document(RunConfig(**asked["nearest"]))
    assert found["adjusted"] == {"seq_len": 120_000}
    assert found["nearest"] is None


def test_what_fits_as_asked_is_not_adjusted(invoke: Invoke) -> None:
    typed = ("--gpu", "rtx-4090", "--seq-len", "1024", "--batch-size", "2", "--no-double-quant")
    plain, adjusted = (document(invoke, MODEL, *typed, *more, code=0) for more in ((), ("--adjust",)))
    assert plain == adjusted
    assert plain["adjusted"] == {} and plain["nearest"] is None
    run = plain["run"]
    assert (run["seq_len"], run["batch_size"], run["double_quant"]) == (1024, 2, False)


def test_where_nothing_is_near_it_says_so(invoke: Invoke) -> None:
    result = invoke("meta-llama/Llama-3.1-405B", "--gpu", "24GB", "--seq-len", "512", "--no-color")
    assert result.exit_code == 1
    assert "does not fit as asked, and nothing near it does" in result.stdout
    found = document(invoke, "meta-llama/Llama-3.1-405B", "--gpu", "24GB", "--seq-len", "512", "--adjust", code=1)
    assert found["nearest"] is None and found["run"]["seq_len"] == 512


def test_a_saved_plan_is_the_run_that_was_asked_for(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    saved = invoke(MODEL, *TOO_LONG, "--save", str(path))
    assert saved.exit_code == 1 and "what is written does not fit this card" in saved.stderr
    assert document(invoke, "check", str(path), code=1)["run"]["seq_len"] == 120_000
    assert invoke(MODEL, *TOO_LONG, "--adjust", "--save", str(path), "--force").exit_code == 0
    assert invoke("check", str(path)).exit_code == 0


def test_no_card_holds_it_as_asked_is_no_bad_input(invoke: Invoke) -> None:
    result = invoke(MODEL, "--objective", "cheapest", "--seq-len", "100000", "--batch-size", "64")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "fits as asked on no card with a known price" in result.stderr
    with pytest.raises(NothingFitsError):
        Session().plan(MODEL, seq_len=100_000, batch_size=64)
    with pytest.raises(InputError, match="no card with a known price"):
        Session().on("24GB").plan(MODEL, objective="cheapest")
    assert invoke(MODEL, "--objective", "cheapest", *TOO_LONG).exit_code == 1


def test_python_gets_the_same(asked: dict[str, Any]) -> None:
    bench = Session().on("rtx-4090")
    answer = bench.plan(MODEL, seq_len=120_000, rank=32, adjust=True)
    assert answer.verdict == "fits" and answer.run.to_dict() == asked["nearest"]
    assert answer.adjusted == {"seq_len": 120_000}
    from qlora_planner import plan

    assert plan(MODEL, "rtx-4090", RunConfig(seq_len=120_000)).nearest is not None
    assert plan(MODEL, "rtx-4090", RunConfig(seq_len=120_000), adjust=True).estimate.verdict == "fits"


def test_the_chance_that_is_taken_holds_for_what_was_typed() -> None:
    bench = Session().on("16GB")
    refused, taken = (bench.plan(MODEL, seq_len=13_888, risk=risk) for risk in ("1%", "60%"))
    assert (refused.verdict, refused.run.seq_len) == ("does-not-fit", 13_888)
    assert refused.nearest is not None and refused.nearest.run.seq_len < 13_888
    assert (taken.verdict, taken.run.seq_len, taken.nearest) == ("tight", 13_888, None)


@pytest.mark.parametrize(
    ("options", "run_seq_len"), [({}, None), ({"yes": True}, 120_000), ({"adjust": True}, "nearest")]
)
def test_train_refuses_what_does_not_fit_as_asked(
    tmp_path: Path, asked: dict[str, Any], options: dict[str, Any], run_seq_len: int | str | None
) -> None:
    from qlora_planner.session.training.onlooker import Onlooker
    from qlora_planner.session.training.prepare import _plan
    from qlora_planner.session.training.request import TrainOptions, request_of

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "word " * 400_000}) + "\n" for _ in range(2)))
    session = Session()
    card = session.on("rtx-4090").card
    explicit = {"seq_len": 120_000, "rank": 32, "packing": False}
    request = request_of(MODEL, explicit, TrainOptions(data=str(rows), card=card, **options))
    here = ThisCard(gpu=card.gpu, others_bytes=0, cap_bytes=None, processes=())
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qlora_planner.session.training.prepare.counted", lambda *_: None)
        if run_seq_len is None:
            with pytest.raises(RefusedError, match="does not fit as asked; the nearest that does: --seq-len"):
                _plan(session, request, session.model(MODEL), here, Onlooker(told.append))
            return
        run, _ = _plan(session, request, session.model(MODEL), here, Onlooker(told.append))
    assert run.seq_len == (asked["nearest"]["seq_len"] if run_seq_len == "nearest" else run_seq_len)


def test_a_survey_says_where_a_model_is_too_short_for_what_was_typed(invoke: Invoke) -> None:
    rows = document(invoke, "--gpu", "80GB", "--seq-len", "8192", code=0)["models"]
    short = [
        row for row in rows if row["run"]["seq_len"] < 8192 and row["verdict"] not in ("will-not-run", "cannot-say")
    ]
    assert short
    assert all("all that it was made for" in row["note"] for row in short)
