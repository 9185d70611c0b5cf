"""FSDP1, ZeRO and pipelines: what a card needs at the least and at the most, beside what cards held."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from qlora_planner.memory import MemoryEstimate
from qlora_planner.session import Session
from qlora_planner.spec.run import RunConfig
from tests.truth import FOLDER

ROWS = [json.loads(line) for line in (FOLDER / "bounds-open.jsonl").read_text(encoding="utf-8").splitlines()]
WHOLE = [row for row in ROWS if row["layers"] is None]
NAMES = {
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B", "llama-2-70b": "meta-llama/Llama-2-70b-hf",
    "llama-3.1-70b": "meta-llama/Llama-3.1-70B",
}  # fmt: skip


@cache
def session() -> Session:
    return Session(stored_only=True)


def answer_of(row: dict[str, Any], card: str) -> MemoryEstimate:
    run = RunConfig(
        seq_len=row["seq_len"], batch_size=row["batch_size"], trainer=row["trainer"], padding=False, upcast=False,
        parallel=row["strategy"], load_on=row["load_on"],
    )  # fmt: skip
    return session().open(NAMES[row["model"]], card).estimate(run)


@pytest.mark.parametrize("row", WHOLE, ids=lambda row: f"{row['id']}-{row['rank']}-{row['how'][:4]}")
def test_a_measured_card_lies_between_the_bounds(row: dict[str, Any]) -> None:
    answer = answer_of(row, "2xh200")
    context = answer.components["cuda_context"] + answer.components.get("communication", 0)
    least = answer.peak.low_bytes - context
    assert least <= row["peak"] <= answer.peak.allocated_bytes
    assert row["max_reserved"] <= answer.peak.reserved_bytes
    assert sum(answer.components.values()) == answer.peak.device_bytes <= answer.peak.high_bytes
    if row["how"].startswith("NCCL"):
        assert answer.peak.low_bytes <= row["nvml_peak"] <= answer.peak.high_bytes


def test_between_the_bounds_nobody_can_say() -> None:
    row = {**WHOLE[0], "model": "llama-3.1-8b", "strategy": "zero3", "load_on": "gpu", "seq_len": 2048, "batch_size": 1}
    verdicts = {card: answer_of(row, card).verdict for card in ("2x8GB", "2x10GB", "2x24GB")}
    assert verdicts == {"2x8GB": "does-not-fit", "2x10GB": "cannot-say", "2x24GB": "fits"}


REFUSED = [
    ({"parallel": "fsdp2", "optimizer": "paged_adamw_8bit"}, "optimizer-refused", "adamw_torch_fused"),
    ({"parallel": "fsdp2", "optimizer": "adamw_8bit"}, "optimizer-refused", "adamw_torch_fused"),
    ({"parallel": "fsdp2", "optimizer": "paged_adamw_32bit"}, "optimizer-refused", "adamw_torch_fused"),
    ({"parallel": "fsdp2", "optimizer": "adamw_torch", "quant_storage": "float16"}, "storage-refused", "bfloat16"),
    ({"parallel": "fsdp1", "quant_storage": "float32"}, "storage-refused", "bfloat16"),
    ({"parallel": "fsdp1", "quant_storage": "uint8"}, "storage-refused", "bfloat16"),
    ({"parallel": "fsdp1", "stack": {"transformers": "5.20"}}, "fsdp1-gone", "fsdp2"),
    ({"parallel": "zero3", "load_on": "cpu"}, "load-on-refused", "--load-on gpu"),
    ({"parallel": "fsdp2", "optimizer": "adamw_torch", "load_on": "meta"}, "load-on-refused", "--load-on cpu"),
    ({"parallel": "ddp", "reshard_after_forward": True}, "reshard-refused", "fsdp2"),
]


@pytest.mark.parametrize(("options", "code", "fix"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_breaks_or_trains_on_garbage_is_refused_with_what_works(
    options: dict[str, Any], code: str, fix: str
) -> None:
    answer = session().open("llama-3.2-1b", "2x24GB").estimate(RunConfig(**options))
    assert answer.verdict == "will-not-run"
    problem = next(problem for problem in answer.problems if problem.blocking)
    assert problem.code == code
    assert fix in problem.fix


WORKED = [
    {"parallel": "ddp"}, {"parallel": "ddp", "use_reentrant": True}, {"parallel": "ddp", "quant_storage": "bfloat16"},
    {"parallel": "fsdp1"}, {"parallel": "fsdp1", "load_on": "gpu"}, {"parallel": "zero2"},
    {"parallel": "zero3"}, {"parallel": "zero3", "quant_storage": "bfloat16"}, {"parallel": "pipeline"},
    {"parallel": "fsdp2", "optimizer": "adamw_torch_fused"},
    {"parallel": "fsdp2", "optimizer": "adamw_torch", "quant_storage": "uint8", "load_on": "gpu"},
    {"parallel": "fsdp2", "optimizer": "adamw_torch", "reshard_after_forward": False},
]  # fmt: skip


@pytest.mark.parametrize("options", WORKED, ids=str)
def test_what_ran_on_cards_is_not_refused(options: dict[str, Any]) -> None:
    answer = session().open("llama-3.2-1b", "2x24GB").estimate(RunConfig(**options))
    assert answer.verdict != "will-not-run", answer.problems


NOTES = [
    ({"parallel": "ddp", "use_reentrant": True}, "ddp-reentrant", "ddp_find_unused_parameters: false"),
    (
        {"parallel": "fsdp2", "optimizer": "adamw_torch", "quant_storage": "uint8", "load_on": "gpu"},
        "storage-whole",
        "bfloat16",
    ),
    ({"parallel": "fsdp2", "optimizer": "adamw_torch", "load_on": "gpu"}, "loads-whole", "--load-on cpu"),
    ({"parallel": "fsdp2", "optimizer": "adamw_torch"}, "full-state-dict", "FULL_STATE_DICT"),
    ({"parallel": "zero3"}, "zero3-gathers-all", "fsdp2"),
    ({"parallel": "pipeline"}, "pipeline-head", "hf-trainer"),
]


@pytest.mark.parametrize(("options", "code", "fix"), NOTES, ids=lambda value: str(value)[:60])
def test_what_happens_without_a_word_is_said(options: dict[str, Any], code: str, fix: str) -> None:
    answer = session().open("llama-3.2-1b", "2x24GB").estimate(RunConfig(**options))
    problem = next(problem for problem in answer.problems if problem.code == code)
    assert fix in problem.fix and not problem.blocking
