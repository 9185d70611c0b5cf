"""Bars, wrapping, cutting, colour."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_planner.report.parts.theme import SEGMENTS, Theme, columns, plain

FANCY, ASCII = Theme(unicode=True), Theme()
_SIZES = st.lists(st.integers(0, 1 << 40), min_size=4, max_size=4)


@given(sizes=_SIZES, whole=st.integers(0, 1 << 40), width=st.integers(8, 100))
def test_a_bar_is_as_wide_as_asked_and_marks_the_edge_only_when_over(sizes: list[int], whole: int, width: int) -> None:
    parts = list(zip(SEGMENTS, sizes, strict=True))
    for theme, edge in ((FANCY, "┃"), (ASCII, "|")):
        text = "".join(piece for piece, _ in theme.bar(parts, whole, width))
        assert len(text) == width
        assert (edge in text) == (sum(sizes) > whole)
    assert text.isascii()


def test_a_bar_in_numbers() -> None:
    parts = [("weights", 50), ("training", 10), ("activations", 20), ("overhead", 0)]
    assert plain(FANCY.bar(parts, 100, 20)) == "█" * 10 + "▓" * 2 + "▒" * 4 + "·" * 4
    assert plain(ASCII.bar(parts, 100, 20)) == "#" * 10 + "=" * 2 + "+" * 4 + "." * 4
    assert plain(ASCII.bar(parts, 40, 20)) == "#" * 10 + "|" + "#" + "=" * 3 + "+" * 5


@given(used=st.integers(0, 1 << 40), whole=st.integers(0, 1 << 40), width=st.integers(1, 40))
def test_a_gauge_is_as_wide_as_asked(used: int, whole: int, width: int) -> None:
    assert sum(len(text) for text, _ in FANCY.gauge(used, whole, width, "green")) == width


@given(text=st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=60), width=st.integers(1, 40))
def test_cut_keeps_the_width_and_both_ends(text: str, width: int) -> None:
    for theme in (FANCY, ASCII):
        short = theme.cut(text, width)
        assert len(short) <= max(width, 0)
        assert short == text or len(text) > width
    assert FANCY.cut("Qwen3-Coder-480B-A35B-Instruct", 15) == "Qwen3-C…nstruct"


@given(
    text=st.text(st.sampled_from("ab -\u00e9"), max_size=300),
    indent=st.integers(0, 30),
    first=st.text(st.sampled_from("xyz,"), max_size=120),
)
def test_wrapped_lines_never_leave_the_screen(text: str, indent: int, first: str) -> None:
    for line in Theme(width=72).wrap(text, indent, first):
        assert len(plain(line)) <= 72


def test_options_are_not_broken_where_they_could_not_be_copied() -> None:
    lines = Theme(width=40).wrap("the way out of this is to say it with --no-gradient-checkpointing here")
    assert any("--no-gradient-checkpointing" in plain(line) for line in lines)


def test_colour_is_only_in_a_coloured_theme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")  # decided before, by whoever made the theme
    line = [("peak", "bold red"), (" [not markup]", "")]
    assert Theme().render([line]) == "peak [not markup]"
    colored = Theme(color=True).render([line])
    assert "\x1b[1;31mpeak\x1b[0m" in colored
    assert "[not markup]" in colored


def test_columns_align() -> None:
    row = columns([("a", ""), ("1", ""), ("b", "")], (4, 4, 4), frozenset({0, 2}))
    assert plain(row) == "a        1  b"
