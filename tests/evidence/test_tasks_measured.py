"""Tasks on an H200 that the project measured itself, and what is estimated of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_planner import estimate, load_model
from qlora_planner.memory import MemoryEstimate
from qlora_planner.spec.run import RunConfig

PROFILES = Path(__file__).parents[2] / "profiles"
ROWS = [
    json.loads(line)
    for line in (PROFILES / "measurements" / "h200-tasks.jsonl").read_text(encoding="utf-8").splitlines()
]
MODELS = {"llama-3.1-8b": "meta-llama/Llama-3.1-8B", "llama-3.2-1b": "meta-llama/Llama-3.2-1B"}
# Generations of which some end early: the batch is padded, as the default has it, and what ships answers for it.
SAMPLE = ("g02", "g09-early-some", "cap-grpo-16-fits")
BEFORE = ("load", "prepare", "adapters", "save")


def estimated(row: dict[str, Any]) -> MemoryEstimate:
    """What is estimated of a row's run, padding left to the default."""
    raw = row["run"]
    run = RunConfig(
        upcast=False, batch_size=raw["per_device_train_batch_size"], grad_accum=raw["grad_accum"], lora_dropout=0.05,
        gradient_checkpointing=raw["gradient_checkpointing"], optimizer=raw["optimizer"], trainer=f"trl-{raw['task']}",
        prompt_len=raw["prompt_tokens"], completion_len=raw["completion_tokens"],
        num_generations=raw["num_generations"],
    )  # fmt: skip
    return estimate(load_model(MODELS[row["model"]]), run, gpu="h200", cap_bytes=raw.get("cap_bytes"))


@pytest.mark.parametrize("row", [row for row in ROWS if row["case"] in SAMPLE], ids=lambda row: str(row["case"]))
def test_completions_that_end_early_take_what_was_measured(row: dict[str, Any]) -> None:
    answer, measured = estimated(row), row["measured_bytes"]
    assert answer.method == "traced"
    phases = [phase for phase in answer.phases if phase.name not in BEFORE]
    allocated = max(phase.allocated_bytes or 0 for phase in phases)
    reserved = max(phase.reserved_bytes or 0 for phase in phases)
    assert answer.static.before_training == measured["before_train_alloc"]
    assert -0.0005 < allocated / measured["train_peak"] - 1 < 0.005
    assert -0.01 < reserved / measured["train_reserved"] - 1 < 0.02
