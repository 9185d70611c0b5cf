"""Where a plan cannot say whether its run fits, nothing on its page says that anything does. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_planner.planner.plan import Plan
from qlora_planner.session import Session
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.spec.run import RunConfig

MODELS = ModelCatalogue([Path(__file__).parents[2] / "profiles" / "models"])
PARTS = sorted(profile.id for profile in MODELS.load_all() if profile.text_part_of is not None)


def _said_to_fit(plan: Plan) -> Iterator[str]:
    """Every row of a plan that claims that some run fits."""
    yield from (f"price {row.change}" for row in plan.prices if row.fits)
    yield from (f"rung {row.change}" for row in plan.ladder if row.fits)
    yield from (f"frontier {row.batch_size} x {row.seq_len}" for row in plan.frontier if row.seq_len)
    yield from (f"instead {row.change}" for row in plan.alternatives)
    yield from (f"on {row.gpu}" for row in plan.compared if row.verdict in ("fits", "tight"))
    if plan.smallest_card is not None:
        yield f"smallest card {plan.smallest_card.card.name}"
    if plan.nearest is not None and plan.nearest.estimate.verdict in ("fits", "tight"):
        yield f"nearest {plan.nearest.change}"


@pytest.mark.parametrize("card", ["8GB", "24GB", "h200"])
@pytest.mark.parametrize("model", PARTS)
def test_no_row_of_a_model_without_its_tower_says_that_a_run_fits(model: str, card: str) -> None:
    plan = Session(stored_only=True).on(card).plan(model, compare="rtx-4090").plan
    assert plan.estimate.verdict in ("cannot-say", "does-not-fit")
    assert not list(_said_to_fit(plan))
    # Differences are known all the same.
    assert any(row.bytes for row in plan.prices)


def test_a_plan_of_text_still_says_what_fits() -> None:
    plan = Session(stored_only=True).on("24GB").plan("llama-3.1-8b", compare="rtx-4090").plan
    said = {line.split()[0] for line in _said_to_fit(plan)}
    assert {"price", "rung", "frontier", "instead", "on", "smallest"} <= said


def test_options_that_do_not_fit_have_a_nearest_run_of_which_nobody_is_sure() -> None:
    answer = Session(stored_only=True).on("12GB").plan("qwen2.5-vl-7b", seq_len=4096, batch_size=8)
    near = answer.plan.nearest
    assert near is not None and near.estimate.verdict == "cannot-say"
    assert "the nearest that may: " in str(answer) and "the nearest that does" not in str(answer)


def test_the_explorer_says_the_same_around_such_a_run() -> None:
    opened = Session(stored_only=True).open("qwen2.5-vl-7b", "24GB")
    grid = opened.frontier(RunConfig())
    assert {verdict for verdict, _ in grid.cells.values()} == {"cannot-say", "does-not-fit"}
    assert set(grid.longest.values()) == {None}
    assert not any(row.fits for row in opened.prices(RunConfig()))


def test_a_survey_counts_no_tokens_that_fit_of_what_it_cannot_say() -> None:
    rows = [row for row in Session().on("24GB").survey().rows if row.verdict == "cannot-say"]
    assert set(PARTS) & {row.model_id for row in rows}
    assert all(row.longest_seq_len is None and row.largest_batch is None for row in rows)


def test_the_page_of_such_a_plan_says_that_nothing_is_said() -> None:
    for card in ("24GB", "6GB"):
        answer = Session(stored_only=True).on(card).plan("qwen2.5-vl-7b")
        shown = " ".join(str(answer).split())
        assert "longest sequence, other runs that fit, the smallest card: not said" in shown
        assert " yes " not in shown and "no sequence length fits" not in shown
        document = answer.plan.to_dict()
        assert document["frontier"] == document["alternatives"] == [] and document["smallest_card"] is None
