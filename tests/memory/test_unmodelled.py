"""What is left out of the figures, and which verdicts survive it."""

from __future__ import annotations

import pytest

from qlora_planner.cli.exits import exit_code
from qlora_planner.memory import MemoryEstimate, Unmodelled
from qlora_planner.memory.unmodelled.qualified import qualified
from qlora_planner.report.estimate import render_estimate
from qlora_planner.report.parts.theme import Theme
from tests.report.records import CARD, GIB, make_estimate


def thing(direction: str, at_most: float | None = None, key: str = "rl: dpo") -> Unmodelled:
    return Unmodelled(key=key, what="two sequences in each row", direction=direction, at_most=at_most)


@pytest.mark.parametrize(
    ("verdict", "peak_gib", "things", "after", "code"),
    [
        ("fits", 12, [thing("both")], "cannot-say", 5),
        ("tight", 22, [thing("up")], "cannot-say", 5),
        ("does-not-fit", 30, [thing("down")], "cannot-say", 5),
        ("does-not-fit", 30, [thing("up")], "does-not-fit", 1),
        ("fits", 12, [thing("down")], "fits", 0),
        ("will-not-run", 12, [thing("both")], "will-not-run", 1),
        # Bounded: 12 GiB and a quarter more is far below 23, 30 GiB less a tenth far above it.
        ("fits", 12, [thing("up", 0.25)], "fits", 0),
        ("does-not-fit", 30, [thing("down", 0.1)], "does-not-fit", 1),
        ("fits", 20, [thing("up", 0.25)], "cannot-say", 5),
        # Each alone leaves the verdict standing, both together do not.
        ("fits", 13, [thing("up", 0.5, "a"), thing("up", 0.5, "b")], "cannot-say", 5),
        ("fits", 12, [thing("up", 0.5, "a"), thing("down", 0.5, "b")], "fits", 0),
    ],
)
def test_a_verdict_stands_only_where_nothing_left_out_could_change_it(
    verdict: str, peak_gib: int, things: list[Unmodelled], after: str, code: int
) -> None:
    before = make_estimate(verdict, peak_gib * GIB)
    found = qualified(before, things)
    assert (found.verdict, exit_code(found)) == (after, code)
    assert (found.peak, found.components, found.floor_bytes) == (before.peak, before.components, before.floor_bytes)


def cannot_say() -> MemoryEstimate:
    return qualified(make_estimate("fits", 12 * GIB), [thing("both")])


def test_the_document_names_what_is_missing_and_marks_the_figures() -> None:
    document = cannot_say().to_dict()
    assert document["partial"] is True
    assert document["unmodelled"] == [
        {"key": "rl: dpo", "what": "two sequences in each row", "direction": "both", "at_most": None}
    ]
    assert document["fit"]["verdict"] == "cannot-say"
    assert document["fit"]["probability_oom"] is None
    assert document["fit"]["reasons"] == [
        "not modelled: rl: dpo (two sequences in each row)",
        "partial, without that: peak 12.00 GiB of 23.00 GiB usable, needs at least 11.00 GiB",
    ]
    assert document["peak"]["device_bytes"] == 12 * GIB


def test_the_screen_names_it_first() -> None:
    lines = render_estimate(cannot_say(), CARD, Theme(), card="24GB").splitlines()
    assert lines[0] == "? cannot say: org/some-model-7b on 24GB"
    assert lines[1] == "  not modelled: rl: dpo (two sequences in each row)"
    assert lines[2].startswith("  partial, without that: peak 12.00 GiB")


def test_a_verdict_that_stands_still_says_that_its_figures_are_partial() -> None:
    found = qualified(make_estimate("does-not-fit", 30 * GIB), [thing("up")])
    assert found.partial
    assert "partial, without rl: dpo: two sequences in each row" in render_estimate(found, CARD, Theme())


def test_what_moves_less_than_the_interval_is_named_and_not_partial() -> None:
    found = qualified(make_estimate("fits", 12 * GIB), [thing("both", 0.05)])
    assert (found.verdict, found.partial) == ("fits", False)
    assert [one["key"] for one in found.to_dict()["unmodelled"]] == ["rl: dpo"]


def test_without_a_card_partial_figures_have_their_own_exit_code() -> None:
    assert exit_code(make_estimate(None)) == 0
    found = qualified(make_estimate(None), [thing("both")])
    assert (found.verdict, found.partial, exit_code(found)) == (None, True, 5)


def test_nothing_is_named_twice() -> None:
    once = cannot_say()
    assert qualified(once, [thing("both")]) == once
    twice = qualified(once, [thing("up", key="images")])
    assert twice.fit is not None
    assert twice.fit.reasons[0] == "not modelled: rl: dpo, images (two sequences in each row)"
