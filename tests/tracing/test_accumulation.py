"""Accumulation is played from tapes of single micro-batches, and gives what tracing it gives."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from qlora_planner.catalog.gpus import GpuCatalogue
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.replay.simulate import simulate_run
from qlora_planner.memory.sweep.validity import accumulates_apart, trace_key
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.configs import read_config
from qlora_planner.spec.run import RunConfig

ROOT = Path(__file__).parents[2] / "profiles"
PROFILE = ModelCatalogue([ROOT / "models"]).load("HuggingFaceTB/SmolLM2-135M")
RAW = read_config(ROOT / "configs" / "HuggingFaceTB__SmolLM2-135M.json")
CARD = GpuCatalogue([ROOT / "gpus"]).get("h200")


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_size": 4, "rank": 64}, {"trainer": "hf-trainer", "upcast": True}, {"gradient_checkpointing": False}],
)
def test_a_second_micro_batch_is_the_first_again(options: dict[str, object]) -> None:
    single = RunConfig(seq_len=512, **options)  # type: ignore[arg-type]
    several = resolve(PROFILE, single.with_(grad_accum=4), CARD)
    assert trace_key(several.run, several.stack, CARD) == trace_key(
        resolve(PROFILE, single, CARD).run, several.stack, CARD
    )
    traced = simulate_run(PROFILE, several, trace_run(RAW, several, CARD), 32 << 20)
    played = simulate_run(PROFILE, several, trace_run(RAW, resolve(PROFILE, single, CARD), CARD), 32 << 20)
    assert played.allocated == traced.allocated
    assert played.reserved == traced.reserved
    assert played.lost == 0
    alone = simulate_run(
        PROFILE, resolve(PROFILE, single, CARD), trace_run(RAW, resolve(PROFILE, single, CARD), CARD), 32 << 20
    )
    assert alone.training["forward"].peak.allocated < played.training["forward"].peak.allocated


@pytest.mark.parametrize("options", [{"trainer": "loop"}, {"activation_offloading": True}])
def test_where_micro_batches_overlap_accumulation_is_traced(options: dict[str, object]) -> None:
    assert accumulates_apart(RunConfig(grad_accum=2, **options))  # type: ignore[arg-type]
    assert not accumulates_apart(RunConfig(**options))  # type: ignore[arg-type]
