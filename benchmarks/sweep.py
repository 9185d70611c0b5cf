"""Runs per second: a sweep over arrays, one run at a time, and a run played through the allocator.

python benchmarks/sweep.py [model ...]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qlora_planner.catalog import find_optimizer, trainer_row
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.replay.simulate import simulate_run
from qlora_planner.memory.sweep.polynomials import FixedBytes
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.memory.weights.static import static_memory
from qlora_planner.memory.weights.trainable import training_state
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.tapes import stored_tape
from qlora_planner.spec.run import RunConfig
from tools.peaks import peak_polynomials_of

PROFILES = Path(__file__).parents[1] / "profiles"
MODELS = ("meta-llama/Llama-3.1-8B", "mistralai/Mistral-7B-v0.1", "Qwen/Qwen3-8B", "openai/gpt-oss-20b")
WORKSPACE_BYTES = 32 << 20
RUNS = 200_000


def best_s(work: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of `times` goes."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def measure(name: str) -> str:
    """One line for one model."""
    profile = ModelCatalogue([PROFILES / "models"]).load(name)
    stored = stored_tape(profile, [PROFILES / "tapes"])
    if stored is None:
        return f"{name}: no tape"
    resolution = resolve(profile, RunConfig())
    run = resolution.run
    trainer, _ = trainer_row(run.trainer or "trl-sft", resolution.stack)
    optimizer = find_optimizer(run.optimizer)
    assert optimizer is not None
    static = static_memory(Placement(profile, run))
    state = training_state(static.trainable, run, trainer, optimizer)
    fixed = FixedBytes.of(static.after_prepare, state, sum(tensor.count for tensor in static.trainable), run)
    moments = peak_polynomials_of(stored.tape, run, stored.region).on(WORKSPACE_BYTES)
    compiling = best_s(lambda: peak_polynomials_of(stored.tape, run, stored.region).on(WORKSPACE_BYTES), 2)
    single = best_s(lambda: moments.allocated_phases(1, 2048, run.rank, fixed), 50)
    seqs = 513 + np.arange(RUNS) % 3584
    batches = np.ones_like(seqs)
    # Once: the same sizes asked again are looked up.
    sweep = best_s(lambda: moments.highest(batches, seqs, run.rank, fixed, False, 0), 1)
    tape = stored.tape.at(1, 2048, run.rank, WORKSPACE_BYTES)
    played = best_s(lambda: simulate_run(profile, resolution, tape, WORKSPACE_BYTES), 3)
    return (
        f"{name}: sweep {RUNS / sweep:,.0f} runs/s; single {single * 1e3:.3f} ms; played {played * 1e3:.0f} ms; "
        f"moments {compiling:.2f} s; single over sweep {single * RUNS / sweep:.0f}x, played over single "
        f"{played / single:.0f}x"
    )


if __name__ == "__main__":
    for model in sys.argv[1:] or MODELS:
        print(measure(model), flush=True)
