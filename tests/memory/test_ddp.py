"""DistributedDataParallel on several cards, beside what ranks on H200s held."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qlora_planner.memory import MemoryEstimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.parallel.ddp import MIB, ddp_wrapping, grouped
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.session import Session
from qlora_planner.spec.run import RunConfig
from tests.truth import FOLDER

ROWS = [json.loads(line) for line in (FOLDER / "ddp-open.jsonl").read_text(encoding="utf-8").splitlines()]
# No trace of the row at batch 4 ships. Rank 1 of another loads onto card 0, as a script does that says
# `device_map={"": 0}`: its own card is empty by then.
WHOLE = [row for row in ROWS if row["layers"] is None and row["phases"]["load"]["peak"] > MIB and row["batch_size"] < 4]
NAMES = {"llama-3.1-8b": "meta-llama/Llama-3.1-8B", "llama-3.2-1b": "meta-llama/Llama-3.2-1B"}
# A phase of ours, and where the same moment is in a row. Theirs is not told apart where ours is.
PHASES = {"load": ("load",), "wrap": ("wrap",), "forward": ("forward", "loss"), "backward": ("backward",)}


@cache
def session() -> Session:
    return Session(stored_only=True)


@cache
def played(row: str) -> MemoryEstimate:
    raw = json.loads(row)
    run = RunConfig(
        seq_len=raw["seq_len"], batch_size=raw["batch_size"], trainer=raw["trainer"], padding=False, upcast=False,
        gradient_checkpointing=raw["gradient_checkpointing"],
    )  # fmt: skip
    answer = session().open(NAMES[raw["model"]], "2xh200").estimate(run)
    assert answer.method == "traced"
    return answer


def name_of(row: dict[str, Any]) -> str:
    return f"{row['id']}-{row['rank']}"


@pytest.mark.parametrize("row", WHOLE, ids=name_of)
def test_each_phase_of_a_measured_rank_is_met_within_two_in_a_thousand(row: dict[str, Any]) -> None:
    answer = played(json.dumps(row))
    ours = {phase.name: phase for phase in answer.phases}
    for theirs, names in PHASES.items():
        peak = max(ours[name].allocated_bytes or 0 for name in names)
        assert peak == pytest.approx(row["phases"][theirs]["peak"], rel=0.002), theirs
    for name in ("load", "wrap", "backward"):
        assert ours[name].reserved_bytes == pytest.approx(row["phases"][name]["reserved"], rel=0.01), name
    assert answer.peak.device_bytes == pytest.approx(row["nvml_peak"], rel=0.02)


@pytest.mark.parametrize("row", WHOLE[::2], ids=name_of)
def test_every_rank_holds_the_same_and_adds_up(row: dict[str, Any]) -> None:
    answer = played(json.dumps(row))
    document = answer.to_dict()
    assert document["parallel"] == "ddp"
    assert document["machine"]["gpus_per_node"] == 2 and document["machine"]["nodes"] == 1
    assert [rank["rank"] for rank in document["ranks"]] == [0, 1]
    for rank in document["ranks"]:
        assert sum(rank["components"].values()) == rank["peak"]["device_bytes"] == document["peak"]["device_bytes"]
        assert rank["gpu"] == "h200" and rank["fit"] == document["fit"] and rank["phases"] == document["phases"]


def test_layers_of_two_kinds_have_each_adapter_in_the_buckets_once() -> None:
    """`bucket_sizes` as DDP's own logging told them of a Gemma 2, whose two kinds of layers have like names."""
    profile = session().model("google/gemma-2-2b")
    resolution = resolve(profile, RunConfig(parallel="ddp", optimizer="adamw_torch_fused"))
    wrapping = ddp_wrapping(Placement(profile, resolution.run), resolution.trainer)
    assert wrapping.kept == (14_057_472, 26_247_168, 1_228_800)


def test_closed_forms_meet_a_model_of_four_layers_within_two_per_cent(tmp_path: Path) -> None:
    row = next(row for row in ROWS if row["id"] == "gloo2-ddp-1b")
    config = json.loads((FOLDER / "configs" / "llama-3.2-1b.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}), encoding="utf-8")
    answer = session().open(str(tmp_path), "2xh200").estimate(RunConfig(seq_len=512, padding=False, upcast=False))
    ours = {phase.name: phase for phase in answer.phases}
    assert answer.method == "proved-form"  # two ranks shared a card over gloo: the same bytes as over NCCL
    assert sum(answer.components.values()) == answer.peak.device_bytes
    for theirs, names in PHASES.items():
        peak = max(ours[name].allocated_bytes or 0 for name in names)
        assert peak == pytest.approx(row["phases"][theirs]["peak"], rel=0.02), theirs


def test_buckets_of_a_dtype_are_closed_once_they_are_full_and_come_in_the_order_of_their_first_tensors() -> None:
    tensors = [("bfloat16", MIB), ("float32", 3), ("bfloat16", 20 * MIB), ("bfloat16", 6 * MIB), ("float32", 4)]
    assert grouped(tensors, (MIB, 25 * MIB)) == [[MIB], [3, 4], [20 * MIB, 6 * MIB]]


def test_a_rank_that_trains_in_float32_keeps_twice_the_gradients_of_one_in_bfloat16() -> None:
    kept = {}
    for trainer in ("trl-sft", "hf-trainer"):
        run = RunConfig(trainer=trainer, upcast=False)
        one, two = (session().open(NAMES["llama-3.2-1b"], card).estimate(run) for card in ("h200", "2xh200"))
        kept[trainer] = _live(two, "save") - _live(one, "save")
    # 11,272,192 trainable parameters, and what is left unsplit of a bucket's segment.
    assert kept["trl-sft"] == pytest.approx(2 * 11_272_192, abs=2 * MIB)
    assert kept["hf-trainer"] == pytest.approx(4 * 11_272_192, abs=2 * MIB)


def _live(answer: MemoryEstimate, name: str) -> int:
    return next(phase.allocated_bytes or 0 for phase in answer.phases if phase.name == name)


def test_ranks_that_talk_over_gloo_hold_what_two_of_them_on_one_card_did(tmp_path: Path) -> None:
    config = json.loads((FOLDER / "configs" / "llama-3.2-1b.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}), encoding="utf-8")
    bench = session().open(str(tmp_path), "2xh200")
    run = RunConfig(seq_len=512, padding=False, upcast=False, parallel="ddp")
    nccl, gloo = (bench.estimate(run.with_(ddp_backend=backend)) for backend in ("nccl", "gloo"))
    assert gloo.peak.reserved_bytes == nccl.peak.reserved_bytes
    assert gloo.peak.device_bytes == nccl.peak.device_bytes - (774 << 20)  # NCCL's 844 MiB less torch's streams
    wrap = next(phase for phase in gloo.phases if phase.name == "wrap")
    outside = (wrap.device_bytes or 0) - (wrap.reserved_bytes or 0)
    assert outside == pytest.approx((1508 - 828) << 20, abs=4 << 20)  # NVML's figure and torch's, as they were measured
    assert gloo.speed.step_s is None and nccl.speed.step_s is not None
