"""Records behave as frozen dataclasses do, and refuse a change when they run and when their types are checked."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest

from qlora_planner.record import fields_of, record


@record
class Point:
    """Two numbers, and what is known of them."""

    x: int
    y: int = 0
    known: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """The same as the standard library makes it."""

    x: int
    y: int = 0
    known: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)


@record
class Alone:
    """A single field."""

    x: int


def test_as_a_frozen_dataclass() -> None:
    one, other = Point(x=1, known={"a": 1}), Frozen(x=1, known={"a": 1})
    assert repr(one) == repr(other).replace("Frozen", "Point")
    assert fields_of(one) == asdict(one) == asdict(other) == {"x": 1, "y": 0, "known": {"a": 1}}
    assert hash(one) == hash(other) == hash(Point(x=1)) and one == Point(x=1) != Point(x=2)
    assert hash(Alone(x=7)) == hash((7,))
    assert replace(one, y=5) == Point(x=1, y=5)
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    with pytest.raises(TypeError):
        Point(1)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        one.z = 1  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="immutable"):
        one.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        del one.x
    with pytest.raises(TypeError, match="unhashable"):
        hash(Alone(x=[]))  # type: ignore[arg-type]


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_the_type_checker_refuses_a_change(tmp_path: Path) -> None:
    file = tmp_path / "changes.py"
    file.write_text(
        "from qlora_planner.spec.run import RunConfig\nrun = RunConfig(rank=8)\nrun.rank = 16\nRunConfig(rnak=8)\n"
    )
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), str(file)],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False,
    )  # fmt: skip
    assert found.returncode == 1, found.stdout + found.stderr
    assert "read-only" in found.stdout and "rnak" in found.stdout
