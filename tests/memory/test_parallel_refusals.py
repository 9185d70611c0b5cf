"""Refusals on several cards: every measured row that worked is let through, what broke is refused, as libraries do."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from qlora_planner.memory.options.parallel import parallel_problems, settled
from qlora_planner.session import Session
from qlora_planner.spec.run import RunConfig
from tests.truth import FOLDER

STACK = {"transformers": "5.17.0", "trl": "1.16.0"}
# Rows of a run that went through three steps on garbage without a word, which is what is refused of them.
GARBAGE = {"fsdp2-8b-f16store", "fsdp2-8b-f32store"}


def rows() -> list[dict[str, Any]]:
    """Every measured rank, once for each case."""
    found: dict[str, dict[str, Any]] = {}
    for name, strategy in (("fsdp2", "fsdp2"), ("ddp", "ddp"), ("bounds", None)):
        for line in (FOLDER / f"{name}-open.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found.setdefault(row["id"], {"strategy": strategy, **row})
    return list(found.values())


def run_of(row: dict[str, Any]) -> RunConfig:
    run = RunConfig(
        quant="nf4", compute_dtype="bfloat16", trainer=row.get("trainer", "trl-sft"), parallel=row["strategy"],
        optimizer=row.get("optimizer") or "paged_adamw_8bit", load_on=row.get("load_on"),
        quant_storage=row.get("storage"),
    )  # fmt: skip
    return run.with_(**{name: value for name, (value, _) in settled(run).items()})


def blocking(run: RunConfig) -> set[str]:
    return {problem.code for problem in parallel_problems(run, STACK) if problem.blocking}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["id"])
def test_a_measured_case_is_refused_where_it_broke_or_trained_on_garbage_and_nowhere_else(row: dict[str, Any]) -> None:
    expected = {"optimizer-refused"} if row.get("error") else {"storage-refused"} if row["id"] in GARBAGE else set()
    assert blocking(run_of(row)) == expected


def test_a_checkpoint_that_is_quantised_already_stays_in_bytes() -> None:
    run = RunConfig(quant="nf4", compute_dtype="bfloat16", parallel="fsdp2", optimizer="adamw_torch_fused")
    chosen = {name: value for name, (value, _) in settled(run, stored=True).items()}
    assert (chosen["quant_storage"], chosen["load_on"]) == ("uint8", "gpu")
    codes = {problem.code for problem in parallel_problems(run.with_(**chosen), STACK, stored=True)}
    assert "storage-whole" in codes and not blocking(run.with_(**chosen))
    asked = parallel_problems(run.with_(quant_storage="bfloat16"), STACK, stored=True)
    assert any(problem.blocking and "from_prequantized" in problem.message for problem in asked)


@cache
def session() -> Session:
    return Session(stored_only=True)


def test_warnings_of_loading_and_storing_have_this_models_figures() -> None:
    """An 8B's 4-bit weights are 3,328 MiB; whole on both cards that is 1,664 more on each. Quantising took 60 s."""
    run = RunConfig(parallel="fsdp2", optimizer="adamw_torch_fused", load_on="gpu", quant_storage="uint8")
    answer = session().open("llama-3.1-8b", "2x8GB").estimate(run)
    said = {problem.code: problem.message for problem in answer.problems}
    assert "1,664 MiB more on each" in said["storage-whole"]
    assert "about 1 min of quantising" in said["loads-whole"]
    answer = session().open("llama-3.1-8b", "2x8GB").estimate(run.with_(quant_storage="bfloat16"))
    said = {problem.code: problem.message for problem in answer.problems}
    # 8,228.8 MiB at wrapping, measured.
    assert "8,228 MiB before the first step, more than the" in said["loads-whole"]


def test_fsdp1_is_said_to_save_no_adapter_and_not_refused() -> None:
    codes = {}
    for strategy in ("fsdp1", "fsdp2"):
        run = RunConfig(quant="nf4", compute_dtype="bfloat16", parallel=strategy, optimizer="adamw_torch_fused")
        run = run.with_(**{name: value for name, (value, _) in settled(run).items()})
        codes[strategy] = {problem.code for problem in parallel_problems(run, STACK)}
        assert not blocking(run)
    assert "fsdp1-adapter-unsaved" in codes["fsdp1"] - codes["fsdp2"]
