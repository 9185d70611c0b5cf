"""What is recommended, the stack takes: a few option sets, built and stepped at toy size on the CPU.

`benchmarks/recommended.py` does it for every model class, card and objective.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qlora_planner import session

pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import recommended  # type: ignore[import-not-found]

# Model, card, objective, and what the recommendation is known for: without it the case would show less than it says.
CASES = [
    ("meta-llama/Llama-3.2-1B", "h100", "quality", "lora, none"),
    ("meta-llama/Llama-3.1-8B", "10GB", "throughput", "checkpointing"),
    ("Qwen/Qwen2.5-7B", "24GB", "throughput", "padding, accumulation"),
    ("google/gemma-2-9b", "16GB", "rank", "qlora, nf4"),
    ("microsoft/phi-2", "8GB", "throughput", "qlora, nf4"),
    ("Qwen/Qwen3-30B-A3B", "80GB", "throughput", "qlora, nf4"),
]


@pytest.mark.parametrize(("model", "card", "goal", "known_for"), CASES)
def test_stack_takes(model: str, card: str, goal: str, known_for: str) -> None:
    found = recommended.recommended([session.load_model(model)], [session.load_gpu(card)], [goal])
    (case,) = recommended.cases_of(found)
    assert known_for in case.options
    assert recommended.step(case, "cpu") is None


def test_a_refused_run_is_told() -> None:
    found = recommended.recommended(
        [session.load_model("meta-llama/Llama-3.2-1B")], [session.load_gpu("24GB")], ["throughput"]
    )
    (case,) = recommended.cases_of(found)
    case.run = case.run.with_(target_modules="no_such_module")
    said = recommended.step(case, "cpu")
    assert said is not None and said.startswith("adapters:")
