"""Figures of closed forms are told from traced ones at the head of every answer."""

from __future__ import annotations

from dataclasses import replace

from qlora_planner import RunConfig, load_gpu, load_model, plan
from qlora_planner.exchange.plan_file import headline
from qlora_planner.memory.estimate import estimate
from qlora_planner.planner.plan import Plan
from qlora_planner.report.estimate import render_estimate
from qlora_planner.report.pages.plan_report import render_share
from qlora_planner.report.parts.theme import Theme
from qlora_planner.report.plan import render_plan
from qlora_planner.report.survey import render_survey
from tests.report.records import CARD, GIB, make_estimate, make_row

THEME = Theme(unicode=True)
MARK = "by formulas, as no training step of this run is recorded: less exact: 90 % interval"


def head(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def test_an_estimate_says_so_and_marks_its_peak() -> None:
    found = replace(make_estimate("fits", 12 * GIB), method="other-form")
    text = head(render_estimate(found, CARD, THEME))
    assert "peak ~12.00 GiB of" in text
    assert MARK in text
    traced = head(render_estimate(make_estimate("fits", 12 * GIB), CARD, THEME))
    assert "~" not in traced
    assert "by formulas" not in traced


def test_without_a_card_it_is_marked_too() -> None:
    found = replace(make_estimate("fits", 12 * GIB), method="other-form", fit=None)
    assert "needs ~12.00 GiB at its peak" in head(render_estimate(found, None, THEME))


def t4_plan() -> Plan:
    # No trace of a T4's recipe (float16, hf-trainer) ships.
    return plan(load_model("llama-3.2-1b"), load_gpu("t4"), RunConfig(seq_len=1000))


def test_a_plan_and_its_file_and_its_reports_say_so() -> None:
    found = t4_plan()
    document = found.to_dict()
    assert document["estimate"]["footing"] == "other-form"
    assert document["estimate"]["basis"]["activations"] == "assumed"
    assert MARK in head(render_plan(found, {}, "t4", THEME))
    assert headline(document).endswith(", by formulas")
    for html in (True, False):
        text = render_share(found, {}, "t4", html=html)
        assert (
            "All figures by formulas, as no training step of this run is recorded: less exact; the interval is wide."
            in text
        )


def test_the_survey_marks_rows_without_a_trace() -> None:
    rows = [make_row("a/Traced-7B", 7, "fits", traced=True), make_row("b/Unknown-8B", 8, "cannot-say", traced=False)]
    text = render_survey(rows, CARD, RunConfig(), THEME, card="24GB")
    marked = [line for line in text.splitlines() if "7B" in line or "8B" in line]
    assert [">" in line for line in marked[:2]] == [False, True]
    assert "  >             weights and adapters alone: no training step of it is recorded" in text
    assert "weights and adapters alone" not in render_survey(rows[:1], CARD, RunConfig(), THEME, card="24GB")


def test_liger_s_loss_without_a_trace_is_no_secret() -> None:
    profile, run = load_model("llama-3.2-1b"), RunConfig(seq_len=4096, batch_size=2, trainer="hf-trainer", liger=True)
    roomy = estimate(profile, run, load_gpu("24GB"))
    assert roomy.verdict in ("fits", "tight")  # it takes less than is said
    assert [thing.key for thing in roomy.unmodelled] == ["--liger"]
    # Its loss holds no logits, which is counted; how many activations its other kernels hold is not.
    assert estimate(profile, run, load_gpu("12GB")).verdict == "fits"
    assert estimate(profile, run, load_gpu("4GiB")).verdict == "cannot-say"
    assert estimate(profile, run, load_gpu("2GiB")).verdict == "does-not-fit"
