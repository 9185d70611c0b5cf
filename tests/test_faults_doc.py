"""docs/faults.md says what the tests hold, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import faults


def test_the_page_is_what_the_tests_say() -> None:
    assert faults.PAGE.read_text(encoding="utf-8") == faults.page(), "make faults writes it again"


def test_a_mark_must_say_what_its_test_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "TESTS", tmp_path)
    text = """
import pytest

@pytest.mark.fault("no disk", said="the disk ... is full", exit=4, part="begun")
def test_it():
    assert "the disk of mine is full" == r"the disk of mine is full" WORDS
"""
    (tmp_path / "test_one.py").write_text(text.replace("WORDS", ""))
    (row,) = faults.rows()
    assert (row.fault, row.words(), row.exit, row.test) == ("no disk", "`the disk ... is full`", "4", "test_one")
    (tmp_path / "test_one.py").write_text(text.replace('is full" WORDS', 'is empty"').replace('is full" ==', 'is" =='))
    with pytest.raises(ValueError, match="nothing there says 'is full'"):
        faults.rows()
    (tmp_path / "test_one.py").write_text(text.replace("WORDS", "").replace(', part="begun"', ""))
    with pytest.raises(ValueError, match="a fault has exit and part"):
        faults.rows()
