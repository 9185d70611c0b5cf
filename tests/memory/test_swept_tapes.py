"""Moments of a tape, counted segment by segment, against the allocator's playing and the moments kept symbolically."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qlora_planner import session
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.sweep.segments import SweptTape
from qlora_planner.memory.sweep.validity import ValidityRange, trace_key
from qlora_planner.planner.candidate_memory import CandidateFactory
from qlora_planner.planner.sweeps import TapeSweep, fixed_of
from qlora_planner.session.traces import shipped_tape, sweep_for
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import CompiledTape
from tools.peaks import peak_polynomials_of

CATALOGUE = ModelCatalogue([Path(__file__).parents[2] / "profiles" / "models"])
CARD = session.load_gpu("rtx-4090")
BUDGET = Budget.of(CARD)
RUNS = {
    "one long row": RunConfig(),
    "padded rows": RunConfig(batch_size=4),
    "all activations kept": RunConfig(batch_size=2, gradient_checkpointing=False),
    "another trainer": RunConfig(trainer="hf-trainer", seq_len=700),
}


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("model", ["meta-llama/Llama-3.2-1B", "google/gemma-2-2b", "openai-community/gpt2"])
@pytest.mark.parametrize("asked", RUNS.values(), ids=RUNS)
def test_segments_and_symbols_count_the_same_bytes(model: str, asked: RunConfig, accumulated: int) -> None:
    profile = CATALOGUE.load(model)
    resolution = resolve(profile, asked.with_(grad_accum=accumulated), CARD)
    run = resolution.run
    stored = shipped_tape(profile, trace_key(run, resolution.stack, CARD), run.batch_size, run.seq_len)
    if stored is None:
        pytest.skip("no tape of this recipe ships for this model")
    fixed = fixed_of(CandidateFactory.of(profile, BUDGET).ground(resolution), run)
    sizes = np.full(2, run.batch_size), np.array([run.seq_len, run.seq_len // 2 + 1])
    swept = SweptTape.of(stored.tape).on(BUDGET.workspace_bytes)
    phases = swept.allocated_phases(*sizes, run.rank, fixed, accumulated > 1)
    kept = peak_polynomials_of(stored.tape, run, stored.region).on(BUDGET.workspace_bytes)
    for at, (batch, seq) in enumerate(zip(*(size.tolist() for size in sizes), strict=True)):
        single = kept.allocated_phases(batch, seq, run.rank, fixed)
        assert {name: int(level[at]) for name, level in phases.items()} == single


def test_a_tape_is_read_once_for_all_the_runs_of_its_region() -> None:
    profile = CATALOGUE.load("meta-llama/Llama-3.2-1B")
    read: list[tuple[str, int, int]] = []

    def tape_of(variant: str, batch_size: int, seq_len: int) -> tuple[CompiledTape, ValidityRange] | None:
        read.append((variant, batch_size, seq_len))
        stored = shipped_tape(profile, variant, batch_size, seq_len)
        return None if stored is None else (stored.tape, stored.region)

    memory = CandidateFactory.of(profile, BUDGET, TapeSweep(profile=profile, tape_of=tape_of)).make(
        resolve(profile, RunConfig(batch_size=2), CARD)
    )
    for _ in range(2):
        _, traced = memory.floors(np.array([2, 4, 8]), np.array([1024, 1024, 4096]))
        assert traced.all()
    assert len(read) == 2  # up to the head's tile, and beyond it


def test_a_recipe_that_ships_for_the_family_alone_is_ranked_by_its_trace() -> None:
    profile = CATALOGUE.load("meta-llama/Llama-3.1-8B")
    factory = CandidateFactory.of(profile, BUDGET, sweep_for(profile))
    for options in ({"gradient_checkpointing": False}, {"trainer": "hf-trainer"}):
        run = RunConfig(batch_size=2, **options)  # type: ignore[arg-type]
        floors, traced = factory.make(resolve(profile, run, CARD)).floors(np.array([2]), np.array([2048]))
        assert traced.all()
        played = session.estimate(profile, run, CARD).floor_bytes
        assert int(floors[0]) == pytest.approx(played, rel=0.07)
