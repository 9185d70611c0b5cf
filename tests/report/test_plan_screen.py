"""The plan of one model as a screen."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_planner.data.batches.epochs import plan_data
from qlora_planner.planner.plan import Plan
from qlora_planner.planner.records import Advice, Alternative, FrontierPoint, OtherGpu, PlanCost, Price
from qlora_planner.report.parts.theme import Theme
from qlora_planner.report.plan import render_plan
from tests.planner.test_dataset import made
from tests.report.records import CARD, GIB, RUN, make_estimate

THEME = Theme(unicode=True)


def make_plan(**changes: Any) -> Plan:
    estimate = changes.pop("estimate", make_estimate())
    fields: dict[str, Any] = {
        "model": estimate.model, "gpu": CARD, "run": estimate.run, "estimate": estimate,
        "alternatives": (
            Alternative(objective="rank", change={"rank": 64}, buys="the largest rank", bytes=3 * GIB, speed=0.9),
        ),
        "prices": (
            Price(knob="any", change={"gradient_checkpointing": False}, bytes=2 * GIB, speed=1.3, fits=True),
            Price(knob="attention", change={"attention": "eager"}, refused="no eager"),
        ),
        "frontier": (FrontierPoint(batch_size=1, seq_len=8192), FrontierPoint(batch_size=2, seq_len=None)),
        "objective": "throughput", "data": None, "stack": {},
        "advice": (Advice(code="prepare", message="preparing would cost 1.96 GiB here", bytes=1),),
        "compared": (
            OtherGpu(
                gpu="t4", label="Tesla T4", verdict="does-not-fit", usable_bytes=15 * GIB, floor_bytes=20 * GIB,
                usd_per_hour=None, change={"compute_dtype": "float16"},
            ),
        ),
    }  # fmt: skip
    return Plan(**{**fields, **changes})


def test_everything_is_there_and_fits_the_screen() -> None:
    text = render_plan(make_plan(), {}, "24GB", THEME)
    assert text.splitlines()[0] == "✓ fits: org/some-model-7b on 24GB"
    assert max(map(len, text.splitlines())) <= 80
    assert "8,192" in text
    assert "--rank 64" in text
    assert "the largest rank (+3.00 GiB, -10 % speed)" in text
    assert "preparing would cost 1.96 GiB here" in text
    assert "Tesla T4" in text
    assert "--attention eager" not in text
    assert "--no-gradient-checkpointing" in text
    assert "+2,048" in text
    assert "+30 %" in text
    assert "next: qlora-plan org/some-model-7b --gpu 24GB --save plan.yaml" in text.splitlines()


def test_what_was_typed_and_not_kept_is_told() -> None:
    plan = make_plan(estimate=make_estimate(run=RUN.with_(seq_len=4096)), options={"seq_len": 4096})
    text = render_plan(plan, {"seq_len": 9000, "rank": 16}, "24GB", THEME)
    assert "changed  --seq-len 4096 instead of the 9000 asked for, to fit" in text
    assert "--rank 16 instead" not in text
    assert "next: qlora-plan some-model-7b --gpu 24GB --seq-len 4096 --rank 16 --save plan.yaml" in text


def test_nothing_fits() -> None:
    plan = make_plan(estimate=make_estimate("does-not-fit", 90 * GIB), frontier=(), alternatives=(), prices=())
    text = render_plan(plan, {}, "24GB", THEME)
    assert "no sequence length fits here" in text
    assert "next: qlora-plan --gpu 24GB" in text


def test_explain_shows_the_arithmetic() -> None:
    text = render_plan(make_plan(), {}, "24GB", THEME, explain=True)
    assert "why of activations" in text
    assert "sum = device peak" in text


def with_data(verdict: str = "fits", **changes: Any) -> Plan:
    """3,000 rows of 1,000 tokens at 2,000 tokens a second and $0.60 an hour: 3e6 tokens, 25 min, 25 cents."""
    summary = made([1000] * 3000)
    data = plan_data(summary, seq_len=2048, batch_size=2, tokens_per_s=2000.0)
    cost = PlanCost(usd_per_million_tokens=None, usd_per_hour=0.6)
    other = OtherGpu(
        gpu="t4", label="Tesla T4", verdict="fits", usable_bytes=15 * GIB, floor_bytes=9 * GIB, usd_per_hour=None,
        tokens_per_s=200.0, run={"seq_len": 2048, "batch_size": 1, "grad_accum": 16, "packing": False}, change={},
    )  # fmt: skip
    fields = {"data": data, "cost": cost, "compared": (other,), "estimate": make_estimate(verdict)}
    return make_plan(**{**fields, **changes})


def test_a_plan_for_data_begins_with_time_and_money() -> None:
    plan = with_data()
    first, _, rest = render_plan(plan, {}, "24GB", THEME).partition("✓ fits")
    card = plan.gpu.name
    assert " ".join(first.split()) == (
        f"3,000 texts: about 25 min and $0.25 an epoch on {card}; about 4.2 h on Tesla T4"
    )
    assert rest.startswith(": org/some-model-7b")


@pytest.mark.parametrize("changes", [{"verdict": "does-not-fit"}, {"data": None}])
def test_no_time_is_said_of_a_run_that_does_not_fit_or_has_no_data(changes: dict[str, Any]) -> None:
    assert "an epoch on" not in render_plan(with_data(**changes), {}, "24GB", THEME)


def test_an_unknown_price_or_speed_is_left_out() -> None:
    text = " ".join(render_plan(with_data(cost=None, compared=()), {}, "24GB", THEME).split())
    assert "3,000 texts: about 25 min an epoch on" in text
    unknown = plan_data(made([1000] * 3), seq_len=2048, batch_size=2, tokens_per_s=None)
    assert "an epoch on" not in render_plan(with_data(data=unknown), {}, "24GB", THEME)
