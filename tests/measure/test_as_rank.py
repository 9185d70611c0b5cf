"""One rank of several, played alone under torch's fake process group: what it holds is what is planned for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.errors import InputError
from qlora_planner.measure.spec import ChildSpec
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.parallel.fsdp2 import ShardedModel, Sharding
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.session import Session
from qlora_planner.session.cards import card_of
from qlora_planner.session.measuring.as_rank import run_as_rank
from qlora_planner.spec.run import RunConfig
from tests.cli.conftest import Invoke, invoke, own_home
from tests.profiles import toy_profile

__all__ = ["invoke", "own_home"]

WORLD = 8
CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 192, "intermediate_size": 448,
    "num_hidden_layers": 3, "vocab_size": 1003, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
RUN = RunConfig(
    quant="nf4", compute_dtype="bfloat16", seq_len=32, trainer="trl-sft", target_modules="all-linear", rank=4,
    lora_dropout=0.0, optimizer="adamw_torch_fused", parallel="fsdp2", quant_storage="bfloat16", load_on="cpu",
)  # fmt: skip


def test_rank_0_of_eight_trains_and_keeps_the_planned_shards(tmp_path: Path) -> None:
    """On the CPU, where no tensor is rounded up: shards and constants, and 2 KiB that libraries keep beside them."""
    pytest.importorskip("trl")
    profile = toy_profile(CONFIG)
    resolution = resolve(profile, RUN)
    spec = ChildSpec(
        run=resolution.run, config=CONFIG, device="cpu", toy=False, snapshot=False, steps=1, rank=0, world=WORLD
    )
    given, out = tmp_path / "spec.json", tmp_path / "out.json"
    given.write_text(json.dumps(spec.to_dict()))
    child = [sys.executable, "-m", "qlora_planner.measure.child", str(given), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(child, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(out.read_text())
    model = ShardedModel(Placement(profile, resolution.run), resolution.trainer, Sharding(world=WORLD))
    planned = sum(tensor.shard for unit in model.units for tensor in unit.tensors)
    planned += sum(part * weight.group.count for weight in model.placement.weights for part in weight.constant_bytes)
    wrap, load = measured["phases"]["wrap"], measured["phases"]["load"]
    assert wrap["live_bytes"] < load["live_bytes"] / 4
    assert wrap["live_bytes"] == pytest.approx(planned, rel=0.02)
    assert measured["notes"][0].startswith("rank 0 of 8: one rank played alone")


@pytest.mark.parametrize(
    ("card", "rank", "options", "says"),
    [
        ("24GB", 0, {}, "one card has no ranks"),
        ("8x24GB", 8, {}, "are 0 to 7"),
        ("2x24GB", 0, {"parallel": "ddp"}, "DDP needs its other ranks"),
        ("2x24GB", 0, {"parallel": "zero3"}, "--parallel fsdp2"),
    ],
)
def test_what_cannot_be_played_alone_is_refused_in_one_line(
    card: str, rank: int, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        run_as_rank(RunConfig(**options), card_of(Session(), card), rank)


def test_a_rank_without_a_strategy_is_fsdp2s_with_an_optimizer_that_runs_there() -> None:
    run = run_as_rank(RunConfig(), card_of(Session(), "8xa100-80gb"), 3)
    assert (run.parallel, run.optimizer) == ("fsdp2", "adamw_torch_fused")
    named = run_as_rank(RunConfig(parallel="fsdp2"), card_of(Session(), "8xa100-80gb"), 3)
    assert named.optimizer == "paged_adamw_8bit"  # as it was asked for: it is refused by name


def test_a_rank_of_no_cards_asks_for_them(invoke: Invoke) -> None:
    result = invoke("verify", "llama-3.2-1b", "--as-rank", "0", "--device", "cpu")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.strip().endswith("add --gpu, as --gpu 8xa100-80gb")


def test_a_rank_played_alone_is_not_expected_to_hold_what_nccl_takes() -> None:
    """Of two H200s NCCL took 844 MiB; alone on one, the process held 828 beside what torch reserved, measured."""
    card = card_of(Session(stored_only=True), "2xh200")
    alone, among = (replace(card, played_alone=played).budget(None).context for played in (True, False))
    assert alone.communication_bytes == 0
    assert among.total_bytes - alone.total_bytes == (844 - 70) << 20  # torch's streams are of both
    assert among.communication_bytes == 844 << 20
