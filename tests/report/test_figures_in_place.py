"""Figures that a screen or a table could show in another's place: each is told by a value of its own."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from qlora_planner.memory.records import Basis, Speed
from qlora_planner.planner.records import PlanCost
from qlora_planner.report.comparison import compared_phases, compared_process
from qlora_planner.report.estimate import render_estimate
from qlora_planner.report.parts.theme import Theme
from qlora_planner.report.plan import render_plan
from qlora_planner.report.survey import CSV_HEADS, csv_row
from qlora_planner.units import GIB
from tests.evidence.made import measured
from tests.report.records import CARD, make_estimate, make_row
from tests.report.test_plan_screen import make_plan
from tests.report.test_survey_screen import survey

THEME = Theme(unicode=True)


def test_a_component_has_its_share_of_the_peak() -> None:
    """Each of the made components is a twelfth of 12 GiB."""
    lines = [line.split() for line in render_estimate(make_estimate(peak=12 * GIB), CARD, THEME).splitlines()]
    twelfths = [words for words in lines if "1,024" in words]
    assert len(twelfths) > 8
    assert all(words[words.index("1,024") + 1 :][:2] == ["8", "%"] for words in twelfths)


def test_a_price_of_tokens_stands_beside_that_of_an_hour() -> None:
    fast = make_estimate(speed=Speed(tokens_per_s=1000.0, step_s=2.0, basis=Basis.ASSUMED))
    plan = make_plan(estimate=fast, cost=PlanCost(usd_per_million_tokens=0.1234, usd_per_hour=0.4))
    text = " ".join(render_plan(plan, {}, "24GB", THEME).split())
    assert "about $0.123 per million tokens at $0.40 an hour" in text


def test_each_field_of_a_row_is_under_its_name() -> None:
    row = make_row("a/b-7B", 7, "does-not-fit", largest_batch=3, longest_seq_len=64, note="a note")
    cells = dict(zip(CSV_HEADS, csv_row(row), strict=True))
    fields = [name for name in CSV_HEADS if name not in ("model", "recipe")]
    assert {name: cells[name] for name in fields} == {name: getattr(row, name) for name in fields}
    assert cells["model"] == "a/b-7B"


def test_the_next_model_to_plan_holds_sequences_of_a_useful_length() -> None:
    rows = [make_row("a/large-20B", 20, longest_seq_len=64), make_row("a/small-3B", 3, longest_seq_len=4096)]
    assert "next: qlora-plan a/small-3B" in survey(rows)
    assert "next: qlora-plan a/large-20B" in survey(rows[:1])


@pytest.mark.parametrize(("forward", "loss"), [(3 * GIB, 7 * GIB), (7 * GIB, 3 * GIB)])
def test_a_measured_forward_holds_its_loss(forward: int, loss: int) -> None:
    predicted: dict[str, Any] = deepcopy(make_estimate(peak=10 * GIB).to_dict())
    for phase in predicted["phases"]:
        phase["allocated_bytes"] = {"forward": forward, "loss": loss}.get(phase["name"], phase["allocated_bytes"])
    one = measured(reserved=10 * GIB, allocated=9 * GIB, predicted=predicted)
    training = replace(one, phases={**one.phases, "forward": one.phases["training"]})
    rows = {row.name: row for row in compared_phases(training, "allocated_bytes")}
    assert (rows["forward"].predicted, rows["forward"].measured) == (7 * GIB, 9 * GIB)
    assert rows["forward"].residual == pytest.approx(2 / 7)


def test_a_context_is_what_is_left_where_no_evaluation_ended_the_run() -> None:
    one = measured(reserved=10 * GIB, allocated=9 * GIB, predicted=make_estimate(peak=10 * GIB).to_dict())

    def context(run: Any) -> int | None:
        return next(row.measured for row in compared_process(replace(one, run=run)) if row.name == "context")

    assert (context(one.run) or 0) > 0
    assert context(one.run.with_(eval_batch_size=1)) is None
