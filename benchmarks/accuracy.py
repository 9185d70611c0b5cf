"""Predicted beside measured: every phase of every measured row, by row, by model and in all.

usage: accuracy.py [--set open|families] [--rows N,N] [--model NAME]

`open` is 66 runs of 14 models measured with NVML; `families` is 50 runs of 30 other architectures (some cut to a few
layers), measured with torch's counters alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from qlora_planner.errors import MissingError  # noqa: E402
from qlora_planner.hardware import GpuCatalogue, parse_gpu  # noqa: E402
from qlora_planner.memory.estimate import estimate  # noqa: E402
from qlora_planner.memory.resolve import resolve  # noqa: E402
from qlora_planner.profiling.build import build_profile  # noqa: E402
from qlora_planner.profiling.tapes import trace_run  # noqa: E402
from qlora_planner.sources.configs import read_config  # noqa: E402
from tests.truth import run_of  # noqa: E402

TRAINING = ("forward", "loss", "backward", "optimizer")
SETS = {
    "open": ROOT / "tests/data/truth/h200-open.jsonl",
    "families": ROOT / "profiles/measurements/h200-families.jsonl",
}
CONFIGS = ROOT / "tests/data/truth/configs"
FIGURES = ("load peak", "prepare peak", "train allocated", "train reserved", "device")


def errors(answer: Any, measured: dict[str, int]) -> list[float | None]:
    """Signed errors in percent, in the order of FIGURES; None where nothing was measured."""
    phases = {phase.name: phase for phase in answer.phases}
    pairs = (
        (phases["load"].allocated_bytes, measured.get("load_peak")),
        (phases["prepare"].allocated_bytes, measured.get("prepare_peak")),
        (max(phases[name].allocated_bytes or 0 for name in TRAINING), measured.get("train_peak")),
        (max(phases[name].reserved_bytes or 0 for name in TRAINING), measured.get("train_reserved")),
        (answer.peak.device_bytes, measured.get("nvml_peak")),
    )
    return [None if not ours or not theirs else 100 * (ours / theirs - 1) for ours, theirs in pairs]


def main() -> int:
    """Print the table; exit status 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows")
    parser.add_argument("--model")
    parser.add_argument("--set", choices=sorted(SETS), default="open")
    options = parser.parse_args()
    wanted = {int(n) for n in options.rows.split(",")} if options.rows else None
    gpu = parse_gpu("h200", GpuCatalogue([ROOT / "profiles" / "gpus"]))
    profiles: dict[str, Any] = {}
    table: list[tuple[int, str, list[float | None], bool | None]] = []
    for index, line in enumerate(SETS[options.set].read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        name = row["model"]
        if row["outcome"] != "ok" or (wanted and index not in wanted) or options.model not in (None, name):
            continue
        key = row.get("case", name)
        raw = (
            SimpleNamespace(config=row["config"], id=key, sha256="")
            if "config" in row
            else read_config(CONFIGS / f"{name}.json")
        )
        if key not in profiles:
            profiles[key] = build_profile(raw)
        resolution = resolve(profiles[key], run_of(row["run"]), gpu)
        started = time.perf_counter()
        try:
            tape = trace_run(raw, resolution, gpu)
        except MissingError as error:
            print(f"{index:3d} {key:18s} not traced: {error}")
            continue
        traced = time.perf_counter() - started
        started = time.perf_counter()
        answer = estimate(profiles[key], run_of(row["run"]), gpu, tape=tape)
        found = errors(answer, row["measured_bytes"])
        seen = row["measured_bytes"].get("nvml_peak")
        inside = None if seen is None else answer.peak.low_bytes <= seen <= answer.peak.high_bytes
        table.append((index, name, found, inside))
        shown = " ".join("      -" if e is None else f"{e:+7.2f}" for e in found)
        print(f"{index:3d} {key:18s} {shown}  traced {traced:4.1f} s, played {time.perf_counter() - started:.2f} s")
        sys.stdout.flush()
    print(f"\n{'figure':18s} {'mean abs':>9s} {'worst under':>12s} {'worst':>8s}   (percent, {len(table)} rows)")
    for position, figure in enumerate(FIGURES):
        values = [found[position] for _, _, found, _ in table if found[position] is not None]
        known = [value for value in values if value is not None]
        if known:
            print(
                f"{figure:18s} {statistics.mean(map(abs, known)):9.3f} {min(known):+12.2f} {max(known, key=abs):+8.2f}"
            )
    judged = [inside for *_, inside in table if inside is not None]
    print(f"inside the 90 % interval: {sum(judged)} of {len(judged)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
