"""Traced against measured allocated peaks, row by row.

usage: trace_truth.py TRUTH.jsonl CONFIGS_DIR [--model NAME] [--rows 0,3-7] [--fresh]

Results are cached by model, run and the tracing package's sources in a temporary directory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from qlora_planner.profiling import tracing

MIB = 1 << 20


def code_hash() -> str:
    """Hash of the tracing package, so that a change of the engine empties the cache."""
    digest = hashlib.sha256()
    for path in sorted(Path(tracing.__path__[0]).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def predict(row: dict[str, Any], configs: Path, cache: Path, fresh: bool) -> dict[str, Any]:
    """Peaks of one row in bytes, or the error that tracing raised."""
    key = hashlib.sha256(json.dumps([row["model"], row["run"]], sort_keys=True).encode()).hexdigest()[:24]
    path = cache / f"{key}.json"
    if path.exists() and not fresh:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    from qlora_planner.profiling.tracing import engine
    from qlora_planner.profiling.tracing.extrapolate import extrapolate
    from qlora_planner.profiling.tracing.spec import TraceSpec

    raw = json.loads((configs / f"{row['model']}.json").read_text())
    began = time.perf_counter()
    try:
        peaks = extrapolate(engine.trace(raw, TraceSpec.from_truth(row["run"])))
        names = ("static", "prepare", "forward", "loss", "backward", "optimizer", "peak")
        found = {name: getattr(peaks, name) for name in names}
    except Exception as error:  # a benchmark reports what fails and goes on
        found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    found["seconds"] = time.perf_counter() - began
    path.write_text(json.dumps(found))
    return found


def chosen(text: str | None, count: int) -> set[int]:
    """Row numbers of a list such as 0,3-7; all without one."""
    if text is None:
        return set(range(count))
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def describe(row: dict[str, Any]) -> str:
    """The options of a run that are not the common ones."""
    usual = {
        "trainer": "trl-sft",
        "quant": "nf4",
        "lora_rank": 16,
        "optimizer": "paged_adamw_8bit",
        "attention": "sdpa",
    }
    run = row["run"]
    words = [f"{run['batch_size']}x{run['seq_len']}"]
    words += [f"{name}={run[name]}" for name, value in usual.items() if run[name] != value]
    flags = {
        "gradient_checkpointing": True,
        "prepare_for_kbit_training": True,
        "use_reentrant": False,
        "dora": False,
        "activation_offloading": False,
        "liger": False,
        "padding": False,
        "grad_accum": 1,
        "lora_dropout": 0.05,
        "method": "qlora",
        "compute_dtype": "bfloat16",
        "double_quant": True,
    }
    words += [f"{name}={run[name]}" for name, value in flags.items() if run[name] != value]
    words += [f"{name}={version}" for name, version in (run.get("stack") or {}).items()]
    return " ".join(words)


def main(arguments: list[str] | None = None) -> int:
    """Print one line per row, by signed error, and the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", type=Path)
    parser.add_argument("configs", type=Path)
    parser.add_argument("--rows")
    parser.add_argument("--model")
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args(arguments)
    rows = [json.loads(line) for line in options.truth.read_text().splitlines() if line.strip()]
    wanted = chosen(options.rows, len(rows))
    cache = Path(tempfile.gettempdir()) / "qlora-planner-trace-truth" / code_hash()
    cache.mkdir(parents=True, exist_ok=True)
    lines: list[tuple[float, float, str]] = []
    by_model: dict[str, list[float]] = {}
    for number, row in enumerate(rows):
        if number not in wanted or row["outcome"] != "ok" or options.model not in (None, row["model"]):
            continue
        found = predict(row, options.configs, cache, options.fresh)
        label = f"{number:3d} {row['model']:16s} {describe(row)}"
        if "error" in found:
            print(f"FAILED {label}: {found['error']}")
            continue
        measured = row["measured_bytes"]
        error = found["peak"] / measured["train_peak"] - 1
        # What the allocator's unsplit blocks hold beyond the requests, already when training begins.
        slack = measured["peft_alloc"] - found["static"]
        lines.append((error, (found["peak"] + slack) / measured["train_peak"] - 1, label))
        by_model.setdefault(row["model"], []).append(error)
        phase = max(("prepare", "forward", "loss", "backward", "optimizer"), key=lambda name: found[name])
        lines[-1] = (
            *lines[-1][:2],
            f"{label} | {found['peak'] / MIB:.1f} for {measured['train_peak'] / MIB:.1f} MiB, {phase},"
            f" static {-slack / MIB:+.1f}, {found['seconds']:.1f} s",
        )
    for error, with_slack, text in sorted(lines):
        print(f"{error:+7.2%} ({with_slack:+7.2%} with the start's slack) {text}")
    if lines:
        errors = [error for error, _, _ in lines]
        slacked = [error for _, error, _ in lines]
        for name, values in (("requests only", errors), ("with the start's slack", slacked)):
            mean = statistics.mean(abs(value) for value in values)
            print(f"{name}: {len(values)} rows, mean abs {mean:.3%}, worst {min(values):+.2%} / {max(values):+.2%}")
        for model, values in sorted(by_model.items()):
            span = f"{min(values):+.2%} to {max(values):+.2%}"
            print(f"  {model:18s} {len(values):2d} rows, mean {statistics.mean(values):+.2%}, {span}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
