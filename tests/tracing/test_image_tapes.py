"""Tapes of runs with images that ship, against the model's own traces at sizes that nothing was made at."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("trl")

from qlora_planner.spec.run import RunConfig
from tests.wide import some
from tools.images.check import differs

ROOT = Path(__file__).parents[2] / "profiles"
HELD_OUT = [
    ("Qwen/Qwen2.5-VL-7B-Instruct", RunConfig(images=1, image_size="907x655", seq_len=1896, rank=20)),
    ("Qwen/Qwen3-VL-8B-Instruct", RunConfig(images=1, image_size="1111x622", seq_len=2200, rank=12)),
]


@pytest.mark.parametrize(("model", "run"), some(HELD_OUT, 1))
def test_a_shipped_tape_is_the_models_own_trace_to_the_byte(model: str, run: RunConfig) -> None:
    assert differs(ROOT, model, run) is None
