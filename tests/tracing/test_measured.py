"""Traced runs against an H200: rows of the open set, and of families that nothing was tuned to."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

from qlora_planner.catalog.gpus import GpuCatalogue, parse_gpu
from qlora_planner.memory import MemoryEstimate
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.sources.configs import read_config
from qlora_planner.spec.run import RunConfig
from tests.profiles import unprobed
from tests.truth import config_path, rows, run_of
from tests.wide import some

AS_MEASURED = version("transformers").startswith("5.17.")  # another release allocates in another order
ROOT = Path(__file__).parents[2]
H200 = parse_gpu("h200", GpuCatalogue([ROOT / "profiles" / "gpus"]))
# One row per trainer, quantisation, attention, checkpointing, optimizer and library version of the open set.
OPEN = [row for row in rows() if row.index in (0, 2, 6, 13, 27, 39, 42, 46, 59, 79)]
EXPANDABLE = [row for row in rows() if row.index in (55, 57)]  # the whole ones without a limit
LIMITS = {("meta-llama/Llama-3.2-3B", 6954), ("Qwen/Qwen3-32B", 39430), ("meta-llama/Llama-3.1-8B", 11030)}
FAMILIES = {
    row["case"]: row
    for row in map(json.loads, (ROOT / "profiles/measurements/h200-families.jsonl").read_text().splitlines())
}
CAPPED = [
    row
    for row in map(json.loads, (ROOT / "profiles/measurements/h200-caps.jsonl").read_text().splitlines())
    if row["outcome"] == "ok" and (row["model"], row["cap_bytes"] >> 20) in LIMITS
]
SAMPLE = ("qwen3", "gemma3", "lfm2", "qwen35", "bloom", "mixtral", "qwen3moe", "deepseek", "gptoss", "mpt", "padding")


def training(answer: MemoryEstimate) -> tuple[int, int]:
    phases = [phase for phase in answer.phases if phase.name in ("forward", "loss", "backward", "optimizer")]
    return max(p.allocated_bytes or 0 for p in phases), max(p.reserved_bytes or 0 for p in phases)


@pytest.mark.parametrize("row", some(OPEN, 3), ids=lambda row: f"{row.index}-{row.model}")
def test_open_rows(row: Any) -> None:
    source = read_config(config_path(row.model))
    profile = unprobed(source)
    tape = trace_run(source, resolve(profile, row.run, H200), H200)
    answer = estimate(profile, row.run, H200, tape=tape)
    allocated, reserved = training(answer)
    assert abs(allocated / row.measured["train_peak"] - 1) < 0.005
    assert -0.04 < reserved / row.measured["train_reserved"] - 1 < 0.06
    assert -0.03 < answer.peak.device_bytes / row.measured["nvml_peak"] - 1 < 0.05
    assert sum(answer.components.values()) == answer.peak.device_bytes
    assert all(size >= 0 for size in answer.components.values())


@pytest.mark.parametrize("row", some(EXPANDABLE, 3), ids=lambda row: f"{row.index}-{row.model}")
def test_expandable_segments_reserve_what_torch_did(row: Any) -> None:
    """To the byte with the measured release: which free block is taken first decides how much has to be mapped."""
    source = read_config(config_path(row.model))
    profile = unprobed(source)
    tape = trace_run(source, resolve(profile, row.run, H200), H200)
    reserved = training(estimate(profile, row.run, H200, tape=tape))[1]
    assert reserved == pytest.approx(row.measured["train_reserved"], rel=0 if AS_MEASURED else 0.02, abs=0)


@pytest.mark.parametrize("row", some(CAPPED, 3), ids=lambda row: f"{row['model']}-{row['cap_bytes'] >> 20}")
def test_under_a_limit_a_run_gives_back_what_it_has_cached(row: Any) -> None:
    """Each of these would reserve 7 to 11 % more on the whole card."""
    source: Any = SimpleNamespace(config=row["config"], id=row["model"], sha256="")
    profile, run = unprobed(source), RunConfig(**row["run"])
    tape = trace_run(source, resolve(profile, run, H200), H200)
    free, capped = (estimate(profile, run, H200, tape=tape, cap_bytes=cap) for cap in (None, row["cap_bytes"]))
    measured = row["phases"]["training"]["reserved_bytes"]
    assert training(free)[1] > 1.05 * measured
    assert training(capped)[1] == pytest.approx(measured, rel=0.002 if AS_MEASURED else 0.02)
    assert training(capped)[0] == training(free)[0]
    assert sum(capped.components.values()) == capped.peak.device_bytes
    assert capped.floor_bytes <= capped.peak.device_bytes


def test_a_limit_that_does_not_suffice_changes_nothing() -> None:
    row = next(row for row in OPEN if row.run.upcast is False)
    source = read_config(config_path(row.model))
    profile = unprobed(source)
    tape = trace_run(source, resolve(profile, row.run, H200), H200)
    free, short = (estimate(profile, row.run, H200, tape=tape, cap_bytes=cap) for cap in (None, 300 << 20))
    assert short.peak == free.peak
    assert (free.verdict, short.verdict) == ("fits", "does-not-fit")


@pytest.mark.parametrize("case", some([case for case in SAMPLE if case in FAMILIES], 3))
def test_other_families(case: str) -> None:
    row = FAMILIES[case]
    source: Any = SimpleNamespace(config=row["config"], id=case, sha256="")
    profile, run, measured = unprobed(source), run_of(row["run"]), row["measured_bytes"]
    answer = estimate(profile, run, H200, tape=trace_run(source, resolve(profile, run, H200), H200))
    assert answer.static.after_load == measured["load_alloc"]
    assert answer.static.after_adapters == pytest.approx(measured["peft_alloc"], rel=1e-3)
    allocated, _ = training(answer)
    assert abs(allocated / measured["train_peak"] - 1) < 0.005


def test_the_sample_is_there() -> None:
    assert len(OPEN) == 10
    assert [row.run.alloc_conf for row in EXPANDABLE] == ["expandable_segments:True"] * 2
    assert len(CAPPED) == 3
    assert len([case for case in SAMPLE if case in FAMILIES]) >= 10
