"""Shipped tapes against runs traced one by one, on both sides of lengths at which a kernel, mask or tile switches."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.replay.simulate import simulate_run
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.configs import read_config
from qlora_planner.sources.tapes import stored_tape
from qlora_planner.spec.run import RunConfig
from tests.wide import some

PROFILES = Path(__file__).parents[2] / "profiles"
WORKSPACE = 32 << 20
CASES = [
    ("meta-llama/Llama-3.2-1B", 512), ("meta-llama/Llama-3.2-1B", 4096),
    ("openai/gpt-oss-20b", 128), ("openai/gpt-oss-20b", 512), ("openai/gpt-oss-20b", 4096),
]  # fmt: skip


@pytest.mark.parametrize(("model", "edge"), some(CASES, 4))
def test_nothing_is_left_over_on_either_side(model: str, edge: int) -> None:
    profile = ModelCatalogue([PROFILES / "models"]).load(model)
    source = read_config(PROFILES / "configs" / (model.replace("/", "__") + ".json"))
    regions = set()
    for seq_len in (edge, edge + 1):
        resolution = resolve(profile, RunConfig(seq_len=seq_len))
        stored = stored_tape(profile, [PROFILES / "tapes"], 1, seq_len)
        assert stored is not None
        regions.add(stored.region.low)
        kept = simulate_run(profile, resolution, stored.tape.at(1, seq_len, 16, WORKSPACE), WORKSPACE)
        traced = simulate_run(profile, resolution, trace_run(source, resolution, None), WORKSPACE)
        assert replace(kept, static=traced.static) == traced
    assert len(regions) == 2
