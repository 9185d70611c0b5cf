"""Classes of transformers' causal-LM mapping: traced bytes against real CPU allocator events.

A hash chooses which classes are walked here, so that a newer transformers brings new ones in; QLORA_PLANNER_WALK=all
walks every class, as benchmarks/walk.py does.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from qlora_planner.profiling.tracing.recorder import Recorder
from tests.tracing import real_cpu, walk
from tests.tracing.toys import MODEL_TYPES

WANTED = 0.9
ONE_IN = 80
# Of the kinds that tracing finds hardest: recurrent and full layers, fused experts, float32 islands, one encoder.
ALWAYS = ("qwen3_next", "gpt_oss", "mamba2", "hy_v4", "roberta")


def chosen() -> list[str]:
    """One in eighty of the mapping and the hardest, or all of it."""
    if os.environ.get("QLORA_PLANNER_WALK") == "all":
        return list(MODEL_TYPES)
    picked = {name for name in MODEL_TYPES if hashlib.sha256(name.encode()).digest()[0] % ONE_IN == 0}
    return sorted(picked | (set(ALWAYS) & set(MODEL_TYPES)))


@pytest.fixture(autouse=True)
def _quiet() -> None:
    real_cpu.quiet()


def test_nine_of_ten_classes_allocate_what_the_trace_says() -> None:
    checkpointing = dict(zip(chosen(), [False, True] * len(MODEL_TYPES), strict=False))
    found = {name: walk.shallow(name, each)[1] for name, each in checkpointing.items()}
    running = {name: outcome for name, outcome in found.items() if outcome.status != "refused"}
    wrong = {name: outcome for name, outcome in running.items() if outcome.status != "same"}
    assert len(running) >= len(found) / 2, found
    assert len(wrong) <= (1 - WANTED) * len(running), wrong


def test_a_deep_model_compiled_at_other_sizes_allocates_what_its_tape_says() -> None:
    outcome = walk.deep("gpt_oss", "all-linear", checkpointing=True)
    assert outcome.status == "same" and outcome.words.endswith(" bytes"), outcome


def test_the_walk_notices_a_kept_activation_that_is_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    born = Recorder.born

    def forgetful(self: Recorder, tensor: Any, op: str) -> None:
        if op != "aten::silu":
            born(self, tensor, op)

    monkeypatch.setattr(Recorder, "born", forgetful)
    assert walk.shallow("llama", False)[1].status == "differs"


def test_what_the_libraries_refuse_is_refused_by_the_trace_too() -> None:
    # PEFT's LoRA on the router of Llama 4's experts: its tuple of outputs has no dtype.
    targets, outcome = walk.shallow("llama4_text", False)
    assert targets != "all-linear"
    assert outcome.status == "same"
