"""A dataset under a plan as a screen."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_planner.data.batches.epochs import plan_data
from qlora_planner.data.batches.summary import BadRow, RowRef
from qlora_planner.report.data import render_data
from qlora_planner.report.parts.theme import Theme
from tests.planner.test_dataset import made

THEME = Theme(unicode=True)


def screen(summary: Any = None, theme: Theme = THEME, **changes: Any) -> str:
    summary = made([1, 50, 60, 700, 5000]) if summary is None else summary
    return theme.render(render_data(plan_data(summary, **{"seq_len": 8192, "batch_size": 4, **changes}), theme))


def test_everything_is_there() -> None:
    text = screen(tokens_per_s=100.0, peak_bytes=lambda seq_len: seq_len << 20)
    assert "train.jsonl: 5 rows (text), 5,811 tokens" in text
    assert "counted with the tokenizer of org/model" in text
    assert "worst batch  4 x 5,000 tokens = 20,000 tokens, padded to its longest row (line 5)" in text.replace(
        "\n             ", " "
    )
    assert "longest      5,056" in text
    assert "4.94" in text  # GiB of 5,056 tokens
    assert "packing, bfd" in text
    assert "guess" not in text
    assert "~" not in text


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("speed", [None, 3.0])
@pytest.mark.parametrize("unicode", [False, True])
def test_it_fits_eighty_columns(packing: bool, speed: float | None, unicode: bool) -> None:
    long = made([1 << power for power in range(22)] * 9, masked=[3] * 198)
    for summary in (long, made([7]), made([1 << power for power in range(22)], basis="assumed", chars_per_token=3.5)):
        text = screen(
            summary, Theme(unicode=unicode), seq_len=1024, packing=packing, tokens_per_s=speed,
            peak_bytes=lambda seq_len: seq_len << 12,
        )  # fmt: skip
        assert max(map(len, text.splitlines())) <= 80
        assert unicode or text.isascii()


def test_a_guess_is_called_one_everywhere() -> None:
    text = screen(made([100, 200], basis="assumed", tokenizer=None, chars_per_token=4.0), seq_len=128)
    assert "about 300 tokens (a guess)" in text
    assert "a guess: no tokenizer, 4 characters taken as a token" in text
    assert "counted" not in text
    for line in text.splitlines():
        digits = line.startswith(("longest", "padding", "packing"))
        assert not digits or "~" in line, line


def test_what_is_cut_and_left_out_is_told() -> None:
    bad = BadRow(path="train.jsonl", line=17, why="is not JSON")
    summary = made(
        [20, 50, 50], masked=[0, 0, 40], bad_rows=3, first_bad=(bad,), outlier_rows=2,
        outliers=(RowRef(path="train.jsonl", line=1234, tokens=99000),),
    )  # fmt: skip
    text = " ".join(screen(summary, seq_len=32).split())
    assert "3 rows left out, the first in line 17: is not JSON" in text
    assert "line 1,234 (99,000) and 1 more" in text
    assert "--seq-len 32 cuts 2 rows (66.7 %) and loses 68 tokens (56.7 %); 1 row with no answer left dropped" in text


def test_rows_below_the_histogram_are_in_its_first_bin() -> None:
    lines = screen(made([1, 2, 4] + [1 << power for power in range(3, 18)]), Theme()).splitlines()
    assert any(line.startswith("<512") for line in lines)
