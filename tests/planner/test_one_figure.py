"""A sample of `benchmarks/one_figure.py`: what a plan shows is what `estimate` says of that very run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks.one_figure import Comparison, compare
from qlora_planner.session.session import Session

HERE = Session(stored_only=True)


@pytest.mark.parametrize(
    ("model", "card", "typed"),
    [
        ("llama-3.2-1b", "8GB", {}),
        ("qwen2.5-7b", "rtx-3060-12gb", {"seq_len": 4096}),
        ("gemma-2-2b", "rtx-4090", {"trainer": "hf-trainer", "batch_size": 2}),
        # The smallest card gives cuBLAS a larger workspace; one play does not show what expandable segments give back.
        ("qwen2.5-14b", "l4", {"seq_len": 4096}),
        ("ByteDance-Seed/Seed-OSS-36B-Base", "rtx-4090", {"batch_size": 2}),
        # 2 x 2,624 tokens get through on the card, with a chance of a third of running out.
        ("allenai/OLMo-2-1124-7B", "16GB", {"trainer": "hf-trainer"}),
    ],
)
def test_what_a_plan_shows_is_what_estimate_says(model: str, card: str, typed: Mapping[str, Any]) -> None:
    found = Comparison()
    compare(HERE, model, card, typed, found)
    assert not found.differing, found.differing
    assert found.compared > 10
