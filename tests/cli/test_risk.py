"""--risk: the highest chance of running out of memory that passes, in every verb that exits by a verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_planner import Session, estimate
from qlora_planner.errors import InputError, RefusedError
from qlora_planner.spec.risk import parse_risk, verdict_of
from tests.cli.conftest import Invoke

MODEL = "meta-llama/Llama-3.1-8B"
GIB = 1 << 30


def chance_at(seq_len: int, **more: Any) -> tuple[str, float]:
    fit = Session().on("16GB", **more).estimate(MODEL, seq_len=seq_len).fit
    return fit.verdict, fit.probability_oom


@pytest.fixture(scope="module")
def uncertain() -> int:
    """A length of which the chance of running out on 16GB is between 5 % and 50 %."""
    length = next(length for length in range(12_800, 15_000, 64) if chance_at(length)[1] > 0.05)
    assert 0.05 < chance_at(length)[1] < 0.5
    return length


@pytest.mark.parametrize(
    ("text", "chance"),
    [("5%", 0.05), ("5", 0.05), (5, 0.05), ("0.05", 0.05), (0.05, 0.05), ("0.5%", 0.005), (" 12.5 % ", 0.125),
     ("1", 0.01), (".2", 0.2), ("99.9%", 0.999)],
)  # fmt: skip
def test_a_chance_is_a_percentage_or_a_share_of_one(text: str | float, chance: float) -> None:
    assert parse_risk(text) == pytest.approx(chance)


@pytest.mark.parametrize(
    "text", ["", "x", "5 %%", "-5", "0", "0%", "100", "100%", "1e-3", "nan", "5GB", "9" * 40, True]
)
def test_what_is_no_chance_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(InputError, match=r"^--risk: "):
        parse_risk(text, "--risk")


@pytest.mark.parametrize(
    ("chance", "risk", "verdict"),
    [(0.01, 0.05, "fits"), (0.011, 0.05, "tight"), (0.05, 0.05, "tight"), (0.051, 0.05, "does-not-fit"),
     (0.4, 0.5, "tight"), (0.008, 0.5, "fits"), (0.008, 0.005, "does-not-fit"), (0.004, 0.005, "fits")],
)  # fmt: skip
def test_a_fit_is_one_percent_and_tight_is_what_is_taken(chance: float, risk: float, verdict: str) -> None:
    assert verdict_of(chance, risk) == verdict


def test_a_coin_toss_passes_in_estimate_only_where_it_is_asked_for(invoke: Invoke, uncertain: int) -> None:
    asked = ("estimate", MODEL, "--gpu", "16GB", "--seq-len", str(uncertain))
    refused, taken = invoke(*asked), invoke(*asked, "--risk", "50%")
    assert (refused.exit_code, taken.exit_code) == (1, 0)
    said, passed = (" ".join(answer.stdout.split()) for answer in (refused, taken))
    assert "does not fit" in said and "not sure enough" in said and "at most 5 % passes (--risk)" in said
    assert "≈ tight" in passed and "at most 50 % passes" in passed
    document = json.loads(invoke(*asked, "--risk", "0.5", "--json").stdout)
    assert (document["fit"]["verdict"], document["fit"]["risk"]) == ("tight", 0.5)
    assert json.loads(invoke(*asked, "--json").stdout)["fit"]["risk"] == 0.05


def test_check_takes_the_same_chance(invoke: Invoke, uncertain: int, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        yaml.safe_dump(
            {
                "schema": "qlora-plan/plan/1",
                "model": {"id": MODEL},
                "gpu": {"name": "t4"},
                "run": {"seq_len": uncertain},
            }
        )
    )
    asked = ("check", str(plan), "--gpu", "16GB", "--quiet")
    assert [invoke(*asked, *more).exit_code for more in ((), ("--risk", "50"))] == [1, 0]


def test_a_survey_counts_the_models_within_it(invoke: Invoke) -> None:
    # On so small a card only what is taken at long odds counts.
    verdicts = {
        risk: [row["verdict"] for row in json.loads(invoke("--gpu", "6GB", "--risk", risk, "--json").stdout)["models"]]
        for risk in ("0.5%", "5%", "60%")
    }
    assert "tight" not in verdicts["0.5%"]
    fitting = {risk: sum(verdict in ("fits", "tight") for verdict in found) for risk, found in verdicts.items()}
    assert fitting["0.5%"] <= fitting["5%"] < fitting["60%"]


def test_a_risk_needs_a_card(invoke: Invoke) -> None:
    result = invoke("estimate", MODEL, "--risk", "5%")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "qlora-plan: --risk needs a card: add --gpu, as --gpu 24GB\n"


def test_python_takes_it_for_a_session_a_card_and_one_answer(uncertain: int) -> None:
    asked = {"seq_len": uncertain}
    assert Session(risk="50%").on("16GB").estimate(MODEL, **asked).verdict == "tight"
    assert Session().on("16GB", risk=50).estimate(MODEL, **asked).verdict == "tight"
    bench = Session().on("16GB")
    assert bench.estimate(MODEL, risk=0.5, **asked).verdict == "tight"
    assert bench.estimate(MODEL, **asked).verdict == "does-not-fit"
    from qlora_planner import RunConfig

    assert estimate(MODEL, RunConfig(**asked), "16GB", risk="50%").verdict == "tight"
    with pytest.raises(InputError, match="no chance"):
        Session(risk="lots")


def test_training_refuses_what_is_not_sure_enough(uncertain: int) -> None:
    from qlora_planner.session.measuring.this_card import ThisCard
    from qlora_planner.session.training.execute import _check_card

    bench = Session().on("16GB")
    here = ThisCard(gpu=bench.gpu, others_bytes=0, cap_bytes=None, processes=())
    predicted = bench.estimate(MODEL, seq_len=uncertain).estimate
    with pytest.raises(RefusedError, match="chance of running out"):
        _check_card(bench.session, here, predicted, yes=False)
    _check_card(bench.session, here, predicted, yes=True)
    _check_card(bench.session, here, bench.estimate(MODEL, risk="50%", seq_len=uncertain).estimate, yes=False)
