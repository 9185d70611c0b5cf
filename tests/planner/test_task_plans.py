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
    lengths = {"prompt_len", "completion_len", "seq_len"}
    tried = [step for step in _steps(RunConfig(trainer="trl-grpo"), frozenset(lengths), 1200) if step.shorter]
    assert tried[0].names & lengths == {"completion_len", "seq_len"}
    # Only where none fits beside it, the prompt is cut too.
    assert [step.reset.get("prompt_len") for step in tried] == [None, 600, 300]


@pytest.mark.usefixtures("base_install")
def test_a_task_of_a_class_without_traces_is_no_plan_by_closed_forms() -> None:
    bench = Session().open("bigcode/starcoder2-7b", "8GB")
    with pytest.raises(MissingError, match=r"batch 2, 1024 tokens, .*trl-dpo.* is not among the traces that ship"):
        bench.plan(DPO)


def test_a_survey_of_a_task_says_nothing_of_classes_without_traces() -> None:
    session = Session()
    models = [session.model(name) for name in (SMALL, "bigcode/starcoder2-7b")]
    rows = {row.model_id: row for row in survey(models, Budget.of(session.gpu("24GB")), DPO, sweep_of=sweep_for)}
    assert rows[SMALL].verdict == "fits"
    assert rows[SMALL].traced
    other = rows["bigcode/starcoder2-7b"]
    assert (other.verdict, other.longest_seq_len, other.recommended) == ("cannot-say", None, None)
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


@pytest.mark.usefixtures("base_install")
@pytest.mark.parametrize("trainer", ["trl-kto", "trl-rloo"])
def test_a_trainer_that_takes_no_batch_of_one_is_planned_with_a_larger(trainer: str) -> None:
    plan = Session().open(SMALL, "24GB").plan(RunConfig(trainer=trainer), fixed=("trainer",))
    assert plan.estimate.verdict == "fits" and plan.run.batch_size > 1
    assert plan.prices and all(point.played for point in plan.frontier)


def test_an_estimate_of_a_task_alone_is_of_a_batch_that_it_takes() -> None:
    runs = {name: Session().on("24GB").estimate(SMALL, trainer=f"trl-{name}").run for name in ("grpo", "kto", "rloo")}
    assert {name: (run.batch_size, run.grad_accum) for name, run in runs.items()} == {
        "grpo": (1, 8), "kto": (2, 1), "rloo": (2, 1),
    }  # fmt: skip
    # What was typed stays as it was typed, and is refused.
    assert Session().on("24GB").estimate(SMALL, trainer="trl-kto", batch_size=1).verdict == "will-not-run"


@pytest.mark.usefixtures("base_install")
def test_what_the_stack_refuses_as_asked_is_a_plan_that_says_so() -> None:
    plan = Session().on("24GB").plan(SMALL, trainer="trl-grpo", num_generations=1)
    assert plan.verdict == "will-not-run" and plan.prices == ()
    assert [problem.fix for problem in plan.estimate.problems if problem.blocking] == ["--num-generations 2"]


@pytest.mark.usefixtures("base_install")
def test_the_longest_completion_is_as_long_as_one_that_fits_when_estimated() -> None:
    bench = Session().open(SMALL, "6GB")
    run = RunConfig(trainer="trl-grpo", prompt_len=256, num_generations=4)
    longest = bench.plan(run, fixed=("trainer", "prompt_len", "num_generations"), objective="context").run
    asked = run.with_(
        **{name: getattr(longest, name) for name in ("gradient_checkpointing", "alloc_conf", "optimizer")}
    )
    asked = asked.with_(grad_accum=longest.grad_accum)
    tokens = longest.completion_len or 0
    fits, more = (bench.estimate(asked.with_(completion_len=size)).verdict for size in (tokens, tokens + 64))
    assert fits == "fits" and more != "fits"
