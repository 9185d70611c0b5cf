"""Rewards on one line, looked at without running them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_planner.errors import InputError
from qlora_planner.train.rewarding.reward_line import check_rewards, rewards_of

SOURCE = "import math\nfrom math import sqrt as root\nraise SystemExit('was run')\ndef length(): ...\nshort = length\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "re wards.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize("name", ["length", "short", "root"])
def test_what_a_file_binds_is_taken_without_running_it(file: Path, name: str) -> None:
    check_rewards(f"'{file}:{name}' get_repetition_penalty_reward(ngram_size=3)")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "name what rewards completions"),
        ("'{}:lengths'", "has no lengths; it has math, root, length, short"),
        ("'{}'", "name one of its functions after it"),
        ("'{}x:length'", "name a function of a Python file"),
        ("missing.py:length", "there is no such file"),
        ("'{}:length", "a quote is not closed"),
    ],
)
def test_what_no_reward_is_named_by_is_said(file: Path, line: str, says: str) -> None:
    with pytest.raises(InputError) as raised:
        check_rewards(line.format(file))
    assert says in str(raised.value)


def test_a_file_that_is_no_python_is_said(file: Path) -> None:
    file.write_text("def length(:")
    with pytest.raises(InputError, match=r"re wards.py is no Python"):
        check_rewards(f"'{file}:length'")


def test_several_are_separated_by_spaces() -> None:
    assert rewards_of("'a b.py:length'  think_format_reward") == ["a b.py:length", "think_format_reward"]
