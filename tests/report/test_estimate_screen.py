"""One run as a screen: the verdict in the first line, figures that can be followed, fixes that can be copied."""

from __future__ import annotations

import pytest

from qlora_planner.memory import Problem
from qlora_planner.report.estimate import render_estimate
from qlora_planner.report.parts.theme import Theme
from tests.report.records import CARD, GIB, make_estimate

THEME = Theme(unicode=True)


@pytest.mark.parametrize(
    ("verdict", "peak", "first"),
    [
        ("fits", 12 * GIB, "✓ fits: org/some-model-7b on 24GB"),
        ("tight", 22 * GIB, "≈ tight: org/some-model-7b on 24GB"),
        ("does-not-fit", 30 * GIB, "✗ does not fit: org/some-model-7b on 24GB"),
        ("will-not-run", 12 * GIB, "⊘ will not run: org/some-model-7b on 24GB"),
        ("cannot-say", 12 * GIB, "? cannot say: org/some-model-7b on 24GB"),
    ],
)
def test_the_verdict_comes_first(verdict: str, peak: int, first: str) -> None:
    for explain in (False, True):
        text = render_estimate(make_estimate(verdict, peak), CARD, THEME, card="24GB", explain=explain)
        assert text.splitlines()[0] == first
        assert max(map(len, text.splitlines())) <= 80
    plain = render_estimate(make_estimate(verdict, peak), CARD, Theme(), card="24GB")
    assert plain.isascii()


def test_a_run_that_does_not_fit_says_how_much_is_missing_and_where_to_go() -> None:
    text = render_estimate(make_estimate("does-not-fit", 30 * GIB, floor=28 * GIB), CARD, THEME, card="rtx 4090")
    assert "needs at least 28.00 GiB, 5.00 GiB more than the 23.00 GiB usable" in " ".join(text.split())
    assert "next: qlora-plan org/some-model-7b --gpu 'rtx 4090'" in text


def test_a_peak_above_the_card_that_still_works_is_explained() -> None:
    text = render_estimate(make_estimate("tight", 24 * GIB, floor=22 * GIB), CARD, THEME, card="24GB")
    assert "gives cached blocks back under pressure: it needs at least 22.00 GiB" in " ".join(text.split())


def test_no_probability_is_zero_or_one() -> None:
    assert "below 0.1 %" in " ".join(render_estimate(make_estimate(), CARD, THEME).split())
    assert "above 99.9 %" in " ".join(render_estimate(make_estimate("does-not-fit", 30 * GIB), CARD, THEME).split())


def test_without_a_card() -> None:
    text = render_estimate(make_estimate(None), None, THEME)
    assert text.startswith("org/some-model-7b needs 12.00 GiB at its peak")
    assert "--gpu" in text


def test_only_the_peak_phase_is_marked_and_absent_phases_are_dashes() -> None:
    lines = render_estimate(make_estimate(), CARD, THEME).splitlines()
    assert [line.split()[0] for line in lines if "◀ peak" in line] == ["backward"]
    assert [line.split() for line in lines if line.startswith("evaluation")] == [["evaluation", "-", "-", "-"]]


def test_explain_shows_every_why_and_adds_up() -> None:
    estimate = make_estimate(peak=12 * GIB + 7)
    text = render_estimate(estimate, CARD, THEME, explain=True)
    assert all(line.why in text and f"{line.size_bytes:,}" in text for line in estimate.lines)
    assert f"{12 * GIB + 7:,}" in text


def test_problems_carry_their_fix_and_autos_what_they_became() -> None:
    problem = Problem(code="x", message="this stack refuses it", fix="--trainer hf-trainer", blocking=True)
    note = Problem(code="y", message="longer than the model was trained for", fix="--seq-len 2048")
    text = render_estimate(make_estimate(problems=(problem, note)), CARD, THEME)
    assert "refused  this stack refuses it" in text
    assert "fix:   --trainer hf-trainer" in text
    assert "note     longer than" in text
    assert "alpha 32" in text


def test_a_long_module_list_stays_on_the_screen() -> None:
    names = ",".join(f"a_rather_long_module_name_{index}" for index in range(20))
    estimate = make_estimate(resolved={"target_modules": "all that PEFT accepts"})
    estimate = make_estimate(run=estimate.run.with_(target_modules=names), resolved=estimate.resolved)
    for explain in (False, True):
        assert max(map(len, render_estimate(estimate, CARD, THEME, explain=explain).splitlines())) <= 80
