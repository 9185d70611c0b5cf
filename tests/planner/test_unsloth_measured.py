"""Steps of Unsloth as they were measured on an H200, beside what its shipped traces say of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_planner import RunConfig, load_gpu, load_model
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.unmodelled.compiled import padded_bytes
from qlora_planner.session.traces import tape_for

ROWS = Path(__file__).resolve().parents[2] / "profiles/measurements/h200-unsloth.jsonl"
TRAINING = ("forward", "loss", "backward", "optimizer")
# Of the model that traces for this card ship of: short and long rows, batches, with and without its switch.
SAMPLE = (
    "Llama-3.1-8B-1x2048-default", "Llama-3.1-8B-1x8192-off", "Llama-3.1-8B-4x1024-off", "Llama-3.1-8B-8x2048-off",
    "Llama-3.1-8B-1x2048-off-expandable", "Llama-3.1-8B-8x2048-off-expandable",
)  # fmt: skip


def measured() -> dict[str, dict[str, Any]]:
    return {row["case"]: row for row in map(json.loads, ROWS.read_text().splitlines())}


@pytest.mark.parametrize("case", SAMPLE)
def test_a_measured_step_is_met_to_a_part_in_a_thousand_and_the_card_to_one_in_a_hundred(case: str) -> None:
    row = measured()[case]
    profile, card = load_model(row["model"]), load_gpu(row["gpu"])
    # Of most rows the card was used before Unsloth was imported, so that torch's own allocator ran.
    run = RunConfig(
        trainer="unsloth", batch_size=row["batch_size"], seq_len=row["seq_len"], packing=row["packing"], grad_accum=1,
        alloc_conf=row["alloc_conf"] or "expandable_segments:False",
    )  # fmt: skip
    tape = tape_for(profile, run, card, stored_only=True)
    assert tape is not None
    answer, seen = estimate(profile, run, card, tape=tape), row["measured_bytes"]
    phases = {phase.name: phase for phase in answer.phases}
    allocated = max(phases[name].allocated_bytes or 0 for name in TRAINING)
    assert allocated == pytest.approx(seen["train_peak"], rel=0.001)
    assert answer.static.after_adapters == pytest.approx(seen["peft_alloc"], rel=1e-4)
    assert answer.peak.device_bytes == pytest.approx(seen["nvml_peak"], rel=0.01)
    assert answer.peak.low_bytes <= seen["nvml_peak"] <= answer.peak.high_bytes


def test_its_own_allocator_setting_is_played_unless_another_is_asked_for() -> None:
    profile, card = load_model("llama-3.1-8b"), load_gpu("24GB")
    run = RunConfig(trainer="unsloth")
    tape = tape_for(profile, run, card, stored_only=True)
    own = estimate(profile, run, card, tape=tape)
    plain = estimate(profile, run.with_(alloc_conf="expandable_segments:False"), card, tape=tape)
    assert own.run.alloc_conf == "expandable_segments:True" and "alloc_conf" in own.resolved
    assert own.peak.reserved_bytes < plain.peak.reserved_bytes


@pytest.mark.parametrize("case", ["Llama-3.1-8B-4x1024-padded-peak", "Llama-3.1-8B-8x1024-padded-peak"])
def test_padded_batches_whose_layers_it_compiles_stay_within_what_is_said_of_them(case: str) -> None:
    row = measured()[case]
    profile, seen = load_model(row["model"]), row["measured_bytes"]["nvml_peak"]
    run = RunConfig(
        trainer="unsloth", batch_size=row["batch_size"], seq_len=row["seq_len"], grad_accum=1,
        alloc_conf="expandable_segments:False",
    )  # fmt: skip
    answer = estimate(profile, run, load_gpu("h200"), tape=tape_for(profile, run, load_gpu("h200"), stored_only=True))
    reach = {thing.direction: thing.at_most or 0 for thing in answer.unmodelled if "BLOCK_COMPILE" in thing.key}
    peak = answer.peak.device_bytes
    assert peak * (1 - reach["down"]) <= seen <= peak * (1 + reach["up"])
    # On a card where it may choose such batches by itself the interval holds them.
    ada = load_gpu("rtx-4090")
    there = estimate(profile, run, ada, tape=tape_for(profile, run, ada, stored_only=True)).peak
    assert there.high_bytes >= there.device_bytes + (seen - peak)
    assert answer.peak.high_bytes - peak < there.high_bytes - there.device_bytes


# Allocated at the peak of 1,024 packed tokens over what they take in one piece, on an H200: with checkpointing and not,
# a model of 8 layers, 16 heads of 64 and 8 of keys, in 60 pieces that are padded to 7,680 tokens.
@pytest.mark.parametrize(("checkpointed", "measured"), [(True, 180033536 - 56198656), (False, 648578048 - 247385600)])
def test_short_pieces_stay_within_what_is_said_of_their_padding(checkpointed: bool, measured: int) -> None:
    sizes = {"head_dim": 64, "num_attention_heads": 16, "num_key_value_heads": 8}
    model: Any = SimpleNamespace(dim=sizes.__getitem__, layers=8)
    assert measured <= padded_bytes(model, 7680 - 1024, checkpointed) <= 1.25 * measured


@pytest.mark.parametrize(("card", "padded"), [("h200", True), ("rtx-4090", False)])
def test_packed_pieces_are_left_out_where_attention_pads_them(card: str, padded: bool) -> None:
    profile, gpu = load_model("llama-3.1-8b"), load_gpu(card)
    run = RunConfig(trainer="unsloth", packing=True)
    answer = estimate(profile, run, gpu, tape=tape_for(profile, run, gpu, stored_only=True))
    assert any("packed pieces" in thing.key for thing in answer.unmodelled) == padded
