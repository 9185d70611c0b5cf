"""Traced preference trainers against an H200: rows of the open set of tasks."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.sources.configs import read_config
from qlora_planner.spec.run import RunConfig
from tests.profiles import unprobed
from tests.tracing.test_measured import H200
from tests.truth import FOLDER, config_path
from tests.wide import some

TASKS = ("dpo", "kto", "reward")
PHASES = ("forward", "loss", "reference", "backward", "optimizer")
ROWS = [
    row
    for row in map(json.loads, (FOLDER / "tasks-open.jsonl").read_text(encoding="utf-8").splitlines())
    if row["run"]["task"] in TASKS
]


def run_of(raw: dict[str, Any]) -> RunConfig:
    prompt, completion = raw["prompt_tokens"], raw["completion_tokens"]
    return RunConfig(
        trainer=f"trl-{raw['task']}",
        double_quant=raw["double_quant"],
        compute_dtype=raw["compute_dtype"],
        upcast=raw["prepare_for_kbit_training"],
        batch_size=raw["per_device_train_batch_size"],
        grad_accum=raw["grad_accum"],
        rank=raw["lora_rank"],
        lora_dropout=raw["lora_dropout"],
        target_modules=raw["target_modules"],
        gradient_checkpointing=raw["gradient_checkpointing"],
        use_reentrant=raw["use_reentrant"],
        attention=raw["attention"],
        optimizer=raw["optimizer"],
        prompt_len=prompt,
        completion_len=completion,
        padding=False,
    )


@pytest.mark.parametrize(
    "row", some(ROWS, 4), ids=lambda row: f"{row['run']['task']}-{row['run']['completion_tokens']}"
)
def test_open_rows_of_preferences(row: Any) -> None:
    source = read_config(config_path(row["model"]))
    profile, run, measured = unprobed(source), run_of(row["run"]), row["measured_bytes"]
    tape = trace_run(source, resolve(profile, run, H200), H200)
    answer = estimate(profile, run, H200, tape=tape)
    phases = [phase for phase in answer.phases if phase.name in PHASES]
    has = [name for name in PHASES if name != "reference" or row["run"]["task"] != "reward"]
    assert [phase.name for phase in phases] == has
    assert answer.static.before_training == measured["before_train_alloc"], "trl has cast the adapters to bfloat16"
    assert max(phase.allocated_bytes or 0 for phase in phases) == pytest.approx(measured["train_peak"], rel=0.001)
    reserved = max(phase.reserved_bytes or 0 for phase in phases)
    assert -0.02 < reserved / measured["train_reserved"] - 1 < 0.02
    assert sum(answer.components.values()) == answer.peak.device_bytes


def test_a_reward_model_is_traced_with_its_activations_offloaded() -> None:
    source = read_config(config_path("llama-3.2-1b"))
    profile = unprobed(source)
    kept, moved = (
        RunConfig(trainer="trl-reward", seq_len=512, rank=8, activation_offloading=offloads)
        for offloads in (False, True)
    )
    plain, offloaded = (
        estimate(profile, run, H200, tape=trace_run(source, resolve(profile, run, H200), H200)) for run in (kept, moved)
    )
    assert (plain.host.offloaded_bytes or 0) == 0 < (offloaded.host.offloaded_bytes or 0)


def test_rows_of_every_task_are_there() -> None:
    assert {row["run"]["task"] for row in ROWS} == set(TASKS) and len(ROWS) == 5
