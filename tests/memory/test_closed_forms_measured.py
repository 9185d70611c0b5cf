"""Closed forms against peaks that torch counted on an H200, for whole models whose profile ships.

Each row holds terms that decide its peak: whole logits, float32 streams, written-out scores, masks, offloading,
accumulated gradients.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.memory.estimate import estimate
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.spec.run import RunConfig
from tests.memory.test_estimate import H200, training_peak
from tests.truth import run_of

PROFILES = Path(__file__).parents[2] / "profiles"
CATALOGUE = ModelCatalogue([PROFILES / "models"])
# How far off each was when it was written down, rounded up: a formula that loses a term is farther off than that.
BOUNDS = {
    ("Qwen/Qwen2.5-1.5B", "hf"): 0.002,
    ("Qwen/Qwen2.5-1.5B", "hfnoup"): 0.002,
    ("Qwen/Qwen2.5-1.5B", "loop2048"): 0.002,
    ("Qwen/Qwen2.5-1.5B", "r256"): 0.002,
    ("Qwen/Qwen2.5-1.5B", "eager"): 0.01,
    ("Qwen/Qwen2.5-1.5B", "pad"): 0.03,
    ("Qwen/Qwen2.5-1.5B", "nogc"): 0.03,
    ("Qwen/Qwen3-0.6B", "qwen3"): 0.02,
    ("LGAI-EXAONE/EXAONE-4.0-1.2B", "exaone4"): 0.002,
    ("google/gemma-3-1b", "gemma3hf"): 0.002,
    ("meta-llama/Llama-3.2-1B", "llamafp32"): 0.002,
    ("meta-llama/Llama-3.2-1B", "llamareent"): 0.002,
    ("meta-llama/Llama-3.2-1B", "llama1e"): 0.02,
    ("meta-llama/Llama-3.2-1B", "llamaoff"): 0.02,
    ("HuggingFaceTB/SmolLM3-3B", "smollm3"): 0.006,
}


@cache
def families() -> dict[str, dict[str, Any]]:
    lines = (PROFILES / "measurements" / "h200-families.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["case"]: row for row in map(json.loads, lines)}


@pytest.mark.parametrize(("model", "case"), BOUNDS, ids=lambda value: str(value).rpartition("/")[2])
def test_closed_forms_are_as_near_to_what_was_measured_as_they_were(model: str, case: str) -> None:
    row = families()[case]
    found = estimate(CATALOGUE.load(model), run_of(row["run"]), H200)
    assert found.method != "traced"
    assert abs(training_peak(found) / row["measured_bytes"]["train_peak"] - 1) < BOUNDS[model, case]


@pytest.mark.parametrize("trainer", ["trl-sft", "hf-trainer"])
def test_evaluation_holds_whole_logits_of_every_row_of_its_batch(trainer: str) -> None:
    """At least one float32 number a token and word of the vocabulary: 152,000 words, 1,024 tokens a row."""
    profile = CATALOGUE.load("Qwen/Qwen2.5-1.5B")
    run = RunConfig(trainer=trainer, batch_size=2, seq_len=1024, liger=False, padding=False)

    def evaluating(rows: int) -> int:
        phases = estimate(profile, run.with_(eval_batch_size=rows), H200).phases
        return next(phase.allocated_bytes or 0 for phase in phases if phase.name == "eval")

    one, two, eight = evaluating(1), evaluating(2), evaluating(8)
    assert eight - two == pytest.approx(6 * (two - one), rel=1e-3)
    if trainer == "hf-trainer":
        assert two - one >= 4 * 151_936 * 1024


def test_what_is_no_evaluation_has_no_phase_for_it() -> None:
    found = estimate(CATALOGUE.load("Qwen/Qwen2.5-1.5B"), RunConfig(), H200)
    assert next(phase for phase in found.phases if phase.name == "eval").allocated_bytes is None
