"""A short, seeded run of the fuzzer over every reader; `python -m tests.fuzz.run` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_planner.errors import InputError
from tests.fuzz.readers import Reader, readers
from tests.fuzz.run import fault, fuzz

READERS = readers()
_INPUTS = 60


@pytest.mark.parametrize("name", READERS)
def test_no_reader_breaks_hangs_or_swells(name: str) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("safetensors")
    _, finds = fuzz(READERS[name], seed=7, most=_INPUTS)
    assert not finds, [find.what for find in finds]


def test_the_fuzzer_sees_what_it_looks_for(tmp_path: Path) -> None:
    def breaks(_: Path) -> object:
        raise KeyError("x")

    def shouts(_: Path) -> object:
        raise InputError("\x1b]0;x\x07")

    assert str(fault(Reader("x", breaks, ()), tmp_path, b"")).startswith("KeyError at test_readers.py")
    assert "a terminal would obey" in str(fault(Reader("x", shouts, ()), tmp_path, b""))
    assert fault(Reader("x", lambda _: None, ()), tmp_path, b"") is None
