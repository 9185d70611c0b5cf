"""The core without a terminal answers what the command line answers with --json."""

from __future__ import annotations

import shlex

import pytest

from qlora_planner.errors import InputError
from qlora_planner.record import document as json_ready
from qlora_planner.spec.run import RunConfig
from qlora_planner.tui.command_line import command_line
from qlora_planner.tui.core import Subject, card_of, start_run
from qlora_planner.tui.widgets.rows import ModelRow
from tests.tui.conftest import document, surveyed

MODEL = "meta-llama/Llama-3.1-8B"


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.of(MODEL, card_of("rtx-4090"))


@pytest.mark.parametrize(
    "run",
    [
        RunConfig(),
        RunConfig(seq_len=4096, rank=64, batch_size=4, grad_accum=4),
        RunConfig(gradient_checkpointing=False, seq_len=384),
        RunConfig(method="lora", quant="none", optimizer="adamw_torch", trainer="hf-trainer"),
        RunConfig(upcast=True, double_quant=False, alloc_conf="expandable_segments:True"),
        RunConfig(attention="eager", target_modules="attention", stack={"trl": "1.13"}),
    ],
    ids=["default", "larger", "closed form", "lora", "upcast", "stack"],
)
def test_command_line_gives_the_same_figures(subject: Subject, run: RunConfig) -> None:
    words = shlex.split(command_line(MODEL, subject.card, run))
    assert words[0] == "qlora-plan"
    assert document(*words[1:]) == subject.estimate(run).to_dict()


def test_reserve_is_typed_too() -> None:
    from dataclasses import replace

    card = replace(card_of("24GB"), reserve_bytes=800 << 20, cap_bytes=20 << 30)
    there = Subject.of(MODEL, card)
    words = shlex.split(command_line(MODEL, card, RunConfig()))
    assert document(*words[1:]) == there.estimate(RunConfig()).to_dict()


def test_plan_frontier_and_prices(subject: Subject) -> None:
    told = document(MODEL, "--gpu", "rtx-4090")
    plan = subject.plan()
    assert plan.to_dict() == told
    run = RunConfig(**dict(plan.options))
    assert subject.estimate(run).to_dict()["components"] == told["estimate"]["components"]
    assert json_ready(subject.prices(run)) == told["prices"]
    found = subject.frontier(run)
    assert found.longest == {row["batch_size"]: row["seq_len"] for row in told["frontier"]}
    for (batch, length), (verdict, _) in found.cells.items():
        longest = found.longest[batch] or 0
        assert (verdict == "fits") == (length <= longest), (batch, length)


def test_opened_with_what_the_survey_recommends() -> None:
    card = card_of("24GB")
    rows = sorted(surveyed("24GB"), key=lambda row: (-row.params, row.model_id))
    told = document("--gpu", "24GB")
    assert rows == [ModelRow.of(row) for row in told["models"]]
    row = next(one for one in rows if one.model_id == MODEL)
    assert row.options is not None
    estimate = Subject.of(MODEL, card).estimate(start_run(row))
    assert estimate.verdict == "fits"
    assert estimate.run.grad_accum == row.options.get("grad_accum", 1)


def test_plan_of_a_run_is_that_run(subject: Subject) -> None:
    run = RunConfig(seq_len=1024, rank=8, batch_size=2, grad_accum=3)
    assert subject.plan_of(run).run == subject.estimate(run).run
    with pytest.raises(InputError, match="does not fit"):
        subject.plan_of(RunConfig(seq_len=65536, batch_size=16))


def test_refusal_needs_no_estimate(subject: Subject) -> None:
    assert subject.refusal(RunConfig()) is None
    said = subject.refusal(RunConfig(compute_dtype="float16", trainer="trl-sft"))
    assert said is not None
    assert "float16" in said


def test_without_a_card_the_assumption_is_said() -> None:
    card = card_of(None)
    if card.asked == "24GB":
        assert "24GB is assumed" in card.note
    else:
        assert card.asked == "local"


def test_a_card_that_means_nothing() -> None:
    with pytest.raises(InputError, match="rtx-9999"):
        card_of("rtx-9999")


def test_of_several_cards_the_figures_are_those_of_the_command_line() -> None:
    there = Subject.of("meta-llama/Llama-3.1-70B", card_of("2x8GB"))
    run = RunConfig()
    assert there.estimate(run).verdict == "does-not-fit"  # each card loads the whole model first
    assert document(*shlex.split(command_line(there.model, there.card, run))[1:]) == there.estimate(run).to_dict()
