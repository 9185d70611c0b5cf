"""The speed model beside real timings: every exclusive row of a measurements file, calibration and held out apart.

usage:
  speed.py table [FILE ...]            predicted beside measured, errors, order of pairs (default: h200-timings.jsonl)
  speed.py fit FILE ... [--write CARD.json]   fit a card's constants to the calibration rows; into a calibration file
  speed.py rate                        candidates per second of the vectorised form
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
DEFAULT = ROOT / "profiles" / "measurements" / "h200-timings.jsonl"


def timed_runs(paths: Iterable[Path]) -> list[tuple[Any, Any]]:
    """Each exclusive measurement of these files with its derived work."""
    from qlora_planner.session.measuring.predictions import timed_run
    from qlora_planner.sources.evidence import measurements_in

    rows = [(one, timed_run(one, lambda _: None)) for one in measurements_in(paths)]
    return [(one, run) for one, run in rows if run is not None]


def agreement(rows: Sequence[tuple[float, float]]) -> tuple[int, int]:
    """Pairs of runs that the prediction puts in the measured order, of all pairs."""
    pairs = list(itertools.combinations(rows, 2))
    return sum((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in pairs), len(pairs)


def summary(label: str, rows: Sequence[tuple[float, float]]) -> str:
    """Errors and order of (predicted, measured) pairs."""
    errors = [predicted / measured - 1 for predicted, measured in rows]
    inside = sum(abs(error) <= 0.25 for error in errors)
    right, pairs = agreement(rows)
    mean = sum(map(abs, errors)) / len(errors)
    worst = max(errors, key=abs)
    return (
        f"{label}: {len(rows)} runs, mean abs. error {mean:.1%}, within 25 % {inside} of {len(rows)},"
        f" worst {worst:+.1%}, order right in {right} of {pairs} pairs ({right / max(pairs, 1):.1%})"
    )


def describe(run: Any) -> str:
    """A run in a few words."""
    marks = [
        run.method, run.trainer, run.quant, f"{run.batch_size}x{run.seq_len}", f"x{run.grad_accum}", f"r{run.rank}",
        "upcast" if run.upcast else "", "" if run.gradient_checkpointing else "kept", run.attention or "",
        "" if run.lora_dropout else "p0", run.target_modules or "", "padded" if run.padding else "",
        "packed" if run.packing else "", "dora" if run.dora else "",
    ]  # fmt: skip
    return " ".join(mark for mark in marks if mark and mark not in ("x1", "all-linear", "sdpa"))


def table(paths: Sequence[Path], traits: Any = None) -> int:
    """Print every row, and each role's errors."""
    from qlora_planner.evidence.calibration import card_slug
    from qlora_planner.session import calibration, load_gpu
    from qlora_planner.speed.roofline import card_seconds, efficiency_of, host_seconds
    from qlora_planner.speed.work import evaluator, values

    known, roles, missed = calibration(), {}, []
    for one, run in timed_runs(paths):
        chosen = traits or efficiency_of(load_gpu(card_slug(one.gpu.name)), known)[0]
        seconds = run.predicted(chosen)
        sizes = values(run.batch_size, run.seq_len, run.rank, run.work.head_tile_tokens, run.work.experts)
        card = evaluator(card_seconds(run.work.micro, run.rates, chosen))(sizes) * run.work.micro_steps
        host = evaluator(host_seconds(run.work.micro, chosen))(sizes) * run.work.micro_steps
        roles.setdefault(one.role or "none", []).append((seconds, run.step_s))
        error = seconds / run.step_s - 1
        if abs(error) > 0.25:
            missed.append(one.model)
        print(
            f"{error:+7.1%} predicted {seconds:6.3f} measured {run.step_s:6.3f} s (card {card:.3f}, host {host:.3f})"
            f" {(one.role or '')[:4]:4} {one.model.rpartition('/')[2]:26} {describe(one.run)}"
        )
    for role, rows in sorted(roles.items()):
        print(summary(role, rows))
    return 0


def fit_card(paths: Sequence[Path], target: Path | None) -> int:
    """Fit to the calibration rows and print the constants; into a calibration file where one is named."""
    from qlora_planner.evidence.calibration import card_slug
    from qlora_planner.evidence.calibration_file import calibration_from_dict
    from qlora_planner.sources.evidence import write_calibration
    from qlora_planner.speed.fit import fit

    rows = [(one, run) for one, run in timed_runs(paths) if one.role == "calibration"]
    found = fit([run for _, run in rows])
    print(json.dumps(found.traits.to_dict(), indent=1))
    for (one, run), error in zip(rows, found.left_out, strict=True):
        print(f"{error:+6.2f} (log) left out: {one.model} {describe(one.run)} {run.step_s:.3f} s")
    if target is not None:
        known = calibration_from_dict(json.loads(target.read_text()), str(target))
        card = card_slug(rows[0][0].gpu.name)
        write_calibration(target, replace(known, speed={**known.speed, card: found.traits}))
    return table(paths, found.traits)


def rate() -> int:
    """Candidates per second over a million sizes of one option set."""
    import numpy as np

    from qlora_planner.memory.options.resolve import resolve
    from qlora_planner.session import calibration, load_gpu, load_model
    from qlora_planner.spec.run import RunConfig
    from qlora_planner.speed.roofline import speed_model

    profile, gpu = load_model("gemma-2-9b"), load_gpu("h200")
    resolution = resolve(profile, RunConfig(), gpu)
    model = speed_model(profile, resolution, gpu, calibration())
    assert model is not None
    random = np.random.default_rng(0)
    batch, seq, rank = (random.integers(1, high, 1_000_000) for high in (32, 32768, 256))
    start = time.perf_counter()
    model.step_s(batch, seq, rank)
    print(f"{1e6 / (time.perf_counter() - start):,.0f} candidates/s")
    return 0


def main(arguments: list[str]) -> int:
    """Run one of the commands."""
    command, *rest = arguments or ["table"]
    target = None
    if "--write" in rest:
        place = rest.index("--write")
        target = Path(rest[place + 1])
        rest = rest[:place] + rest[place + 2 :]
    paths = [Path(one) for one in rest] or [DEFAULT]
    if command == "rate":
        return rate()
    return fit_card(paths, target) if command == "fit" else table(paths)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
