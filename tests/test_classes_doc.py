"""docs/classes.md says of each class what ships for it now."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from tools.classes import MARKER, Shipped, table
from tools.readme import regenerated

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "classes.md"


def test_the_table_of_classes_is_of_what_ships() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert regenerated(text, {MARKER: table(ROOT / "profiles")}) == text, "make tables"


def test_no_class_that_has_a_law_is_said_to_be_refused() -> None:
    shipped = Shipped(ROOT / "profiles")
    refused = {kind for kind in shipped.laws if shipped.answer(kind).startswith("refused")}
    assert not refused
