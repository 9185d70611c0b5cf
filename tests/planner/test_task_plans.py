"""Plans of pairs, completions and labelled texts: figures are those of estimates, and none stand in where none ship."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_planner.errors import MissingError
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.planner.knobs import of_length
from qlora_planner.planner.nearest import _steps
from qlora_planner.planner.survey.survey import survey
from qlora_planner.session import Session, packages
from qlora_planner.session.traces import sweep_for
from qlora_planner.spec.run import RunConfig
from tests.wide import some

SMALL = "meta-llama/Llama-3.2-1B"
DPO = RunConfig(trainer="trl-dpo", batch_size=2, seq_len=1024)


@pytest.fixture
def base_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "missing_packages", lambda *_: ["torch"])
    monkeypatch.delenv(packages.TRACE_VARIABLE, raising=False)


@pytest.mark.usefixtures("base_install")
def test_what_lies_around_a_plan_of_pairs_is_what_estimate_says_of_it() -> None:
    bench = Session().open(SMALL, "8GB")
    plan = bench.plan(DPO)
    here = bench.estimate(plan.run)
    assert plan.estimate.floor_bytes == here.floor_bytes
    longer = next(price for price in plan.prices if price.change == {"seq_len": 2048})
    there = bench.estimate(plan.run.with_(seq_len=2048))
    assert longer.bytes == there.floor_bytes - here.floor_bytes
    assert longer.fits == (there.verdict == "fits")
    points = {point.batch_size: point.seq_len for point in plan.frontier}
    tokens = points[2]
    assert tokens is not None
    assert tokens > 1024
    assert bench.estimate(plan.run.with_(seq_len=tokens)).verdict == "fits"
    assert bench.estimate(plan.run.with_(seq_len=tokens + 512)).verdict != "fits"


@pytest.mark.usefixtures("base_install")
@pytest.mark.parametrize(
    ("lengths", "whole"), some([({"prompt_len": 64, "completion_len": 96}, 160), ({"prompt_len": 64}, 576)], 2)
)
def test_a_plan_keeps_the_prompts_and_completions_that_were_asked_for(lengths: dict[str, Any], whole: int) -> None:
    asked = RunConfig(trainer="trl-grpo", num_generations=4, **lengths)
    plan = Session().open(SMALL, "24GB").plan(asked, fixed=("trainer", "num_generations", *lengths))
    assert (plan.run.seq_len, plan.run.prompt_len, plan.run.completion_len) == (whole, 64, whole - 64)


def test_a_shorter_run_gives_up_completions_and_keeps_its_prompt() -> None:
    tried = list(_steps(RunConfig(trainer="trl-grpo"), frozenset({"prompt_len", "completion_len", "seq_len"})))
    assert [step.names & {"prompt_len", "completion_len", "seq_len"} for step in tried if step.shorter] == [
        {"completion_len", "seq_len"}
    ]


@pytest.mark.usefixtures("base_install")
def test_a_task_of_a_class_without_traces_is_no_plan_by_closed_forms() -> None:
    bench = Session().open("google/gemma-2-9b", "8GB")
    with pytest.raises(MissingError, match=r"trl-dpo.* is not among the traces that ship"):
        bench.plan(DPO)


def test_a_survey_of_a_task_says_nothing_of_classes_without_traces() -> None:
    session = Session()
    models = [session.model(name) for name in (SMALL, "google/gemma-2-9b")]
    rows = {row.model_id: row for row in survey(models, Budget.of(session.gpu("24GB")), DPO, sweep_of=sweep_for)}
    assert rows[SMALL].verdict == "fits"
    assert rows[SMALL].traced
    other = rows["google/gemma-2-9b"]
    assert (other.verdict, other.longest_seq_len) == ("cannot-say", None)
    assert "no training step of this class is recorded here" in (other.note or "")


def test_longer_sequences_of_a_generating_trainer_are_longer_completions() -> None:
    profile = Session().model(SMALL)
    run = RunConfig(trainer="trl-grpo", batch_size=8, prompt_len=300, completion_len=200)
    longer = resolve(profile, of_length(resolve(profile, run).run, 1000)).run
    assert (longer.seq_len, longer.prompt_len, longer.completion_len) == (1000, 300, 700)
    pairs = of_length(DPO.with_(prompt_len=300, completion_len=200), 1000)
    assert resolve(profile, pairs).run.seq_len == 1000
    assert resolve(profile, of_length(DPO.with_(max_length=512), 1000)).run.seq_len == 1000


def test_options_that_a_task_alone_has_are_among_its_prices() -> None:
    bench = Session(stored_only=True).open(SMALL, "8GB")
    online = RunConfig(trainer="trl-grpo", batch_size=8, grad_accum=2, prompt_len=128, completion_len=128)
    priced = {
        price.change.get("num_generations"): price
        for price in bench.prices(online)
        if "num_generations" in price.change
    }
    assert set(priced) == {4, 16}  # 16 completions in a step are two groups of eight by default
    for count, price in priced.items():
        there, here = (bench.estimate(run) for run in (online.with_(num_generations=count), online))
        assert price.bytes == there.floor_bytes - here.floor_bytes and price.fits
    pairs = {name: value for price in bench.prices(DPO) for name, value in price.change.items()}
    assert pairs["precompute_ref_log_probs"] is True and "num_generations" not in pairs
    rewarded = {name for price in bench.prices(DPO.with_(trainer="trl-reward")) for name in price.change}
    assert not {"num_generations", "precompute_ref_log_probs"} & rewarded
