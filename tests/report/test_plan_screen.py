"""The plan of one model as a screen."""

from __future__ import annotations

from typing import Any

from qlora_planner.planner.plan import Plan
from qlora_planner.report.plan import render_plan
from qlora_planner.report.theme import Theme
from tests.report.records import CARD, GIB, RUN, make_estimate

THEME = Theme(unicode=True)


def make_plan(**changes: Any) -> Plan:
    estimate = changes.pop("estimate", make_estimate())
    fields: dict[str, Any] = {
        "model": estimate.model, "gpu": CARD, "run": estimate.run, "estimate": estimate,
        "alternatives": ({"change": {"batch_size": 4}, "buys": "4 sequences per step", "costs": f"{3 * GIB} bytes"},),
        "prices": ({"change": {"gradient_checkpointing": False}, "bytes": 2 * GIB, "speed": 1.3},),
        "frontier": ({"batch_size": 1, "seq_len": 8192}, {"batch_size": 2, "seq_len": None}),
        "objective": "throughput", "data": None, "stack": {},
    }  # fmt: skip
    return Plan(**{**fields, **changes})


def test_everything_is_there_and_fits_the_screen() -> None:
    text = render_plan(make_plan(), {}, "24GB", THEME)
    assert text.splitlines()[0] == "✓ fits: org/some-model-7b on 24GB"
    assert max(map(len, text.splitlines())) <= 80
    assert "8,192" in text
    assert "--batch-size 4" in text
    assert "costs 3.00 GiB" in text
    assert "--no-gradient-checkpointing" in text
    assert "+2,048" in text
    assert "+30 %" in text
    assert text.splitlines()[-1] == "next: qlora-plan estimate org/some-model-7b --gpu 24GB"


def test_what_was_typed_and_not_kept_is_told() -> None:
    plan = make_plan(estimate=make_estimate(run=RUN.with_(seq_len=4096)))
    text = render_plan(plan, {"seq_len": 9000, "rank": 16}, "24GB", THEME)
    assert "changed  --seq-len 4096 instead of the 9000 asked for, to fit" in text
    assert "--rank 16 instead" not in text
    assert text.splitlines()[-1].endswith("--gpu 24GB --seq-len 4096 --rank 16")


def test_nothing_fits() -> None:
    plan = make_plan(estimate=make_estimate("does-not-fit", 90 * GIB), frontier=(), alternatives=(), prices=())
    text = render_plan(plan, {}, "24GB", THEME)
    assert "no sequence length fits here" in text
    assert "next: qlora-plan --gpu 24GB" in text


def test_explain_shows_the_arithmetic() -> None:
    text = render_plan(make_plan(), {}, "24GB", THEME, explain=True)
    assert "why of activations" in text
    assert "sum = device peak" in text
