"""Measured rows as runs of this project, and what is predicted for one of them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qlora_planner.catalog.cuda import cublas_workspace_bytes
from qlora_planner.catalog.gpus import GpuCatalogue, parse_gpu
from qlora_planner.errors import PlannerError
from qlora_planner.memory import MemoryEstimate
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.explanations import before_training
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.records import Phase
from qlora_planner.memory.replay.player import COMPONENTS
from qlora_planner.memory.replay.simulate import simulate_run
from qlora_planner.profiling.build import build_profile
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.sources.configs import read_config
from qlora_planner.spec.machine import GpuSpec
from tests.truth import run_of

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "tests/data/truth/configs"
TRAINING = ("forward", "loss", "backward", "optimizer")
FIGURES = ("load peak", "prepare peak", "train allocated", "train reserved", "device")
Error = float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row: signed errors in percent in the order of FIGURES, None where nothing was measured.

    `inside`: whether the measured device peak lies in the 90 % interval, None where it was not measured. `refused`
    says why there is no prediction.
    """

    source: str
    index: int
    name: str
    architecture: str
    errors: tuple[Error, ...] = (None,) * len(FIGURES)
    inside: bool | None = None
    traced_s: float = 0.0
    played_s: float = 0.0
    refused: str | None = None


def sources() -> dict[str, Path]:
    """The files of measured rows by short name: the open set, and the project's own that are written alike.

    Measurements in the campaign's form are `campaign.py table`'s; those of tasks, whose options have trl's names, are
    for the tests.
    """
    found = {"open": ROOT / "tests/data/truth/h200-open.jsonl"}
    for path in sorted((ROOT / "profiles/measurements").glob("*.jsonl")):
        rows = read_rows(path)
        if rows and {"run", "outcome", "model", "measured_bytes"} <= set(rows[0]) and "task" not in rows[0]["run"]:
            found[path.stem.removeprefix("h200-")] = path
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Every row of a file, in order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def card(row: dict[str, Any]) -> GpuSpec:
    """The card that a row was measured on; the open set, which names none, is from an H200."""
    return parse_gpu(row.get("gpu") or "h200", GpuCatalogue([ROOT / "profiles" / "gpus"]))


def config_of(row: dict[str, Any]) -> Any:
    """The config that a row was measured with: its own, or the file of its model."""
    if "config" in row:
        return SimpleNamespace(config=row["config"], id=row.get("case", row["model"]), sha256="")
    return read_config(CONFIGS / f"{row['model']}.json")


def predict(row: dict[str, Any]) -> tuple[MemoryEstimate, float, float]:
    """The estimate of a row's run, with the seconds that tracing and playing took.

    Raises MissingError where the run cannot be traced.
    """
    source, gpu, run = config_of(row), card(row), run_of(row["run"])
    profile = build_profile(source)
    started = time.perf_counter()
    tape = trace_run(source, resolve(profile, run, gpu), gpu)
    traced = time.perf_counter()
    cap_mib = row["run"].get("device_cap_mib")
    answer = estimate(profile, run, gpu, tape=tape, cap_bytes=None if cap_mib is None else cap_mib << 20)
    return answer, traced - started, time.perf_counter() - traced


def parts(row: dict[str, Any]) -> list[tuple[str, dict[str, int], int | None]]:
    """What is alive when loading, preparing and training have most allocated, with the measured peak.

    Bytes by component, and last what rounding blocks to 512 bytes and unsplit remainders add: they sum to the
    allocated peak. Raises MissingError where the run cannot be traced.
    """
    source, gpu, run = config_of(row), card(row), run_of(row["run"])
    profile = build_profile(source)
    resolution = resolve(profile, run, gpu)
    workspace = cublas_workspace_bytes(gpu.compute_capability)
    played = simulate_run(profile, resolution, trace_run(source, resolution, gpu), workspace)
    found = []
    for name, peak in (("load", played.load), ("prepare", played.prepare)):
        if peak is not None:
            sizes = before_training(played.static, Phase(name=name, allocated_bytes=peak.allocated))
            found.append((name, sizes, peak.allocated, f"{name}_peak"))
    name = max(TRAINING, key=lambda phase: played.training[phase].peak.allocated)
    best = played.training[name]
    sizes = dict(zip(COMPONENTS, best.components, strict=True))
    found.append((f"training ({name})", sizes, best.peak.allocated, "train_peak"))
    measured = row["measured_bytes"]
    return [
        (
            title,
            {**{part.value: size for part, size in sizes.items() if size}, "rounding": top - sum(sizes.values())},
            measured.get(key),
        )
        for title, sizes, top, key in found
    ]


def figures(answer: MemoryEstimate, measured: dict[str, int]) -> list[tuple[int | None, int | None]]:
    """Predicted and measured bytes, in the order of FIGURES."""
    phases = {phase.name: phase for phase in answer.phases}
    return [
        (phases["load"].allocated_bytes, measured.get("load_peak")),
        (phases["prepare"].allocated_bytes, measured.get("prepare_peak")),
        (max(phases[name].allocated_bytes or 0 for name in TRAINING), measured.get("train_peak")),
        (max(phases[name].reserved_bytes or 0 for name in TRAINING), measured.get("train_reserved")),
        (answer.peak.device_bytes, measured.get("nvml_peak")),
    ]


def judge(task: tuple[str, int, dict[str, Any]]) -> Result:
    """Predict one row and compare; a run that cannot be predicted comes back with its reason."""
    source, index, row = task
    name = row.get("case", row["model"])
    architecture = str(config_of(row).config.get("model_type", "?"))
    try:
        answer, traced_s, played_s = predict(row)
    except PlannerError as error:
        return Result(source=source, index=index, name=name, architecture=architecture, refused=str(error))
    seen = row["measured_bytes"].get("nvml_peak")
    pairs = figures(answer, row["measured_bytes"])
    return Result(
        source=source,
        index=index,
        name=name,
        architecture=architecture,
        errors=tuple(None if not ours or not theirs else 100 * (ours / theirs - 1) for ours, theirs in pairs),
        inside=None if seen is None else answer.peak.low_bytes <= seen <= answer.peak.high_bytes,
        traced_s=traced_s,
        played_s=played_s,
    )
