"""Stands for `qlora-plan verify` and `qlora-plan train`: tells what they tell, with the same writers, in no time.

`HOLD` in the environment: it waits at step 24 of 60 until it is asked to stop; `FAIL`: it refuses.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from qlora_planner.cli.streams import say
from qlora_planner.measure import events_file as events
from qlora_planner.runs.directory import RunDirectory, write_json
from qlora_planner.runs.record import Metrics

MIB = 1 << 20
# Phase -> MiB that NVML would say in it.
HELD = {"load": 6_120, "adapters": 6_240, "rehearsal": 7_480, "training": 7_478}
PREDICTED = {"load": 6_118, "adapters": 6_242, "forward": 7_470, "loss": 7_481, "backward": 7_481, "optimizer": 7_400}
STEPS, HELD_AT = 60, 24


def main(words: list[str]) -> int:
    """One run."""
    if os.environ.get("FAIL"):
        say("--data train.jsonl: there is no such file")
        return 2
    stopped: list[int] = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopped.append(1))
    phases = [{"name": name, "device_bytes": size * MIB} for name, size in PREDICTED.items()]
    events.tell("predicted", {"estimate": {"phases": phases, "peak": {"device_bytes": 7_481 * MIB}}})
    metrics = None
    if words[0] == "train" and "--output" in words:
        folder = RunDirectory(Path(words[words.index("--output") + 1]))
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json(folder.record, {"schema": "qlora-plan/run/1"})
        metrics = Metrics(folder.metrics)
    for phase in ("load", "adapters", "rehearsal", "training"):
        events.tell("phase", {"phase": phase, "elapsed_s": 1.0})
        say({"load": "loading the model", "rehearsal": "trying the longest batch"}.get(phase, phase))
        events.tell("memory", {"process_bytes": HELD[phase] * MIB, "device_bytes": None})
    events.tell("begin", {"step": 0, "of": STEPS})
    for step in range(1, STEPS + 1):
        facts = _step(step)
        events.tell("step", facts)
        if metrics is not None:
            metrics.add("step", facts)
        events.tell("memory", {"process_bytes": (7_400 + 13 * step % 78) * MIB, "device_bytes": None})
        say(f"step {step}/{STEPS}: loss {facts['loss']:.4f}, {facts['tokens_per_s']:,.0f} tokens/s")
        while os.environ.get("HOLD") and step == HELD_AT and not stopped:
            time.sleep(0.02)
        if stopped:
            say(f"step {step}: checkpoint kept")
            return 130
    print("the answer")
    return 0


def _step(step: int) -> dict[str, Any]:
    return {
        "step": step, "of": STEPS, "loss": round(0.9 + 2.1 * math.exp(-step / 9) + 0.05 * math.sin(step), 4),
        "tokens_per_s": 3_150 + 40 * math.sin(step / 3), "step_s": 0.65, "host_peak_bytes": 900 * MIB,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
