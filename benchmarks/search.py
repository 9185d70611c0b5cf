"""Candidates per second of the planner's search, and seconds of whole answers.

python benchmarks/search.py [model ...]
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qlora_planner import session
from qlora_planner.memory.budget import Budget
from qlora_planner.planner.candidate_memory import CandidateFactory
from qlora_planner.planner.objectives import OBJECTIVES
from qlora_planner.planner.search import search
from qlora_planner.planner.search_space import RANKS, search_space
from qlora_planner.sources.locations import tapes_dirs
from qlora_planner.sources.tapes import stored_sweep
from qlora_planner.spec.run import RunConfig

MODELS = ("meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-1.5B", "Qwen/Qwen3-30B-A3B")
BATCHES = tuple(range(1, 257))
ANSWERS = (("llama-3.1-8b", "--gpu", "rtx-4090"), ("--gpu", "24GB"), ("table",))


def rate(name: str) -> str:
    """One line: every option set at every rank and 256 batches."""
    profile, gpu, calibration = session.load_model(name), session.load_gpu("rtx-4090"), session.calibration()
    budget = Budget.of(gpu, calibration=calibration)
    factory = CandidateFactory.of(profile, budget, stored_sweep(profile, tapes_dirs(None)))
    space = search_space(profile, RunConfig(), frozenset(), int8=True, offloading=True)
    space = replace(space, ranks=RANKS, batches=BATCHES, effective_batch=None)
    started = time.perf_counter()
    found = search(factory, RunConfig(), space, OBJECTIVES["throughput"], pace_on=gpu)
    took = time.perf_counter() - started
    return f"{profile.id}: {found.count:,} candidates in {took:.2f} s, {found.count / took:,.0f} a second"


def main(models: list[str]) -> int:
    """Print a line per model and per whole answer."""
    for name in models or MODELS:
        print(rate(name))
    for words in ANSWERS:
        took = []
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "qlora_planner", *words], capture_output=True, check=False)
            took.append(time.perf_counter() - started)
        print(f"qlora-plan {' '.join(words)}: {sorted(took)[1]:.2f} s (median of 3, whole process)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
