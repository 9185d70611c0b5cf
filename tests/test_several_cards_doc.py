"""docs/several-cards.md has the figures that the estimates of now give."""

from __future__ import annotations

from pathlib import Path

from tools.readme import regenerated
from tools.several_cards import sections

PAGE = Path(__file__).parent.parent / "docs" / "several-cards.md"


def test_the_page_on_several_cards_has_the_figures_of_now() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert regenerated(text, sections()) == text, "make tables"
