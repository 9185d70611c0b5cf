"""Memory that is left goes to layers that are not run again: what a plan then recommends, and what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.replay.simulate import simulate_run
from qlora_planner.session import Session
from qlora_planner.session.traces import tape_for
from qlora_planner.session.views.planned import PlanAnswer
from qlora_planner.session.workbench import Workbench
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.spec.run import RunConfig

PROFILES = Path(__file__).parents[2] / "profiles"
LLAMA = "meta-llama/Llama-3.1-8B"


def bench(cap: str | None) -> Workbench:
    return Session().on("rtx-4090", cap=cap)


@cache
def planned(model: str, cap: str | None) -> PlanAnswer:
    return bench(cap).plan(model)


@pytest.mark.parametrize("cap", [None, "18GiB"])
@pytest.mark.parametrize("model", [LLAMA, "Qwen/Qwen3-8B"])
def test_a_plan_is_faster_than_one_that_checkpoints_every_layer_and_fits(model: str, cap: str | None) -> None:
    plan, before = planned(model, cap), bench(cap).plan(model, gradient_checkpointing=True)
    assert (plan.run.checkpoint_every or 1) > 1 and before.run.checkpoint_every is None
    assert plan.estimate.speed.tokens_per_s >= 1.05 * before.estimate.speed.tokens_per_s
    assert (plan.estimate.method, plan.estimate.verdict) == ("traced", "fits")


def test_the_figure_is_that_of_the_estimate_of_the_run() -> None:
    plan = planned(LLAMA, None)
    alone = bench(None).estimate(LLAMA, plan.run)
    assert alone.estimate.floor_bytes == plan.estimate.floor_bytes
    assert alone.estimate.peak.device_bytes == plan.estimate.peak.device_bytes


def test_a_price_says_what_more_recomputing_frees_and_costs() -> None:
    plan = planned(LLAMA, None)
    every = plan.run.checkpoint_every
    row = next(row for row in plan.prices if row.change.get("checkpoint_every", every) < every)
    other = bench(None).estimate(LLAMA, plan.run.with_(**row.change))
    assert row.bytes == other.estimate.floor_bytes - plan.estimate.floor_bytes < -(1 << 30)
    assert row.speed is not None and 0.9 < row.speed < 1 and row.fits


def test_where_memory_runs_out_more_layers_are_checkpointed_before_anything_is_lost() -> None:
    rungs = [rung.change for rung in planned(LLAMA, None).ladder]
    assert rungs[:2] == [{"checkpoint_every": 2}, {"checkpoint_every": None}]


def test_checkpointing_that_was_asked_for_stays_as_it_is() -> None:
    assert bench(None).plan("Qwen/Qwen2.5-0.5B", checkpoint_every=3).run.checkpoint_every == 3


def test_nothing_is_recomputed_where_all_fits() -> None:
    run = Session().on("h200").plan("Qwen/Qwen2.5-0.5B").run
    assert not run.gradient_checkpointing and run.checkpoint_every is None


def test_models_of_experts_are_not_answered_from_two_tapes() -> None:
    profile = ModelCatalogue([PROFILES / "models"]).load("Qwen/Qwen3-30B-A3B")
    assert tape_for(profile, RunConfig(lora_dropout=0.0), stored_only=True) is not None
    assert tape_for(profile, RunConfig(lora_dropout=0.0, checkpoint_every=2), stored_only=True) is None


def test_one_layer_in_one_is_every_layer_also_where_a_tape_does_not_say_what_it_was_cut_to() -> None:
    profile = ModelCatalogue([PROFILES / "models"]).load("Qwen/Qwen2.5-3B")
    tape = tape_for(profile, RunConfig(), stored_only=True)
    assert tape is not None
    reserved = {
        simulate_run(profile, resolve(profile, RunConfig(checkpoint_every=every)), replace(tape, kept=()), 0).reserved
        for every in (1, None)
    }
    assert len(reserved) == 1


def test_layers_that_keep_all_take_what_they_took_on_an_h200() -> None:
    lines = (PROFILES / "measurements/h200-stacks.jsonl").read_text().splitlines()
    row = next(row for row in map(json.loads, lines) if row["case"] == "pc-Qwen2.5-3B-12-every4-1x")
    desk = Session().on("h200", cap=f"{row['cap_bytes'] >> 20}MiB")
    answer = desk.estimate(row["model"], RunConfig(**row["run"])).estimate
    measured = row["measured_bytes"]
    assert answer.peak.allocated_bytes == pytest.approx(measured["train_peak"], rel=1e-3)
    assert answer.peak.device_bytes == pytest.approx(measured["nvml_peak"], rel=1e-3)
