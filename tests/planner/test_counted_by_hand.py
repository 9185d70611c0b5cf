"""Prices, cards and operations against counts made by hand from published configs and measured rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qlora_planner.catalog import trainer_row
from qlora_planner.catalog.gpus import GpuCatalogue
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.planner.candidate_memory import CandidateFactory
from qlora_planner.planner.gpus.others import smallest_card, standing
from qlora_planner.planner.neighbours import prices
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.tapes import stored_sweep
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.layers import layers_of
from qlora_planner.speed.step import setting_of
from qlora_planner.speed.work import BASIS

PROFILES = Path(__file__).parents[2] / "profiles"
MODELS = ModelCatalogue([PROFILES / "models"])
CARDS = GpuCatalogue([PROFILES / "gpus"])
MIB = 1 << 20
# PEFT's own count for rank 16 on every linear of Llama-3.1-8B (profiles/measurements/h200-timings.jsonl).
TRAINABLE = 41_943_040


def batch_prices(batch_size: int, grad_accum: int) -> dict[tuple[int, int], int]:
    """Bytes by micro-batch and accumulation, for a run of Llama-3.1-8B at 2,048 tokens."""
    llama, card = MODELS.load("meta-llama/Llama-3.1-8B"), CARDS.get("rtx-4090")
    run = resolve(llama, RunConfig(batch_size=batch_size, grad_accum=grad_accum), card).run
    factory = CandidateFactory.of(llama, Budget.of(card), stored_sweep(llama, [PROFILES / "tapes"]))
    rows = prices(factory, run, card)
    return {
        (row.change["batch_size"], row.change["grad_accum"]): row.bytes
        for row in rows if row.knob == "batch_size" and row.bytes is not None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("batch_size", "grad_accum", "neighbours"),
    [
        (2, 1, {(1, 2), (4, 1)}),
        (2, 4, {(1, 8), (4, 2)}),
        (3, 1, {(1, 3), (6, 1)}),
        (1, 8, {(2, 4)}),
        (5, 1, {(2, 3), (10, 1)}),  # of two no five are made: a step of six loses no sample
    ],
)
def test_a_price_of_the_batch_keeps_the_effective_batch(
    batch_size: int, grad_accum: int, neighbours: set[tuple[int, int]]
) -> None:
    assert set(batch_prices(batch_size, grad_accum)) == neighbours


def test_a_price_counts_the_gradients_that_accumulation_keeps() -> None:
    """16 bits a trainable parameter are kept from one micro-batch to the next, and from one alone nothing is."""
    once, twice, often = batch_prices(2, 1), batch_prices(2, 2), batch_prices(2, 4)
    assert twice[4, 1] - often[4, 2] == -2 * TRAINABLE
    assert once[4, 1] == often[4, 2]
    assert once[1, 2] - often[1, 8] == 2 * TRAINABLE


# Measured: what a process holds with nothing of its own on the card (docs/design.md, Constants).
ON_H200, ON_T4 = (612 + 146) * MIB, 141 * MIB


def test_another_card_has_its_own_context() -> None:
    small, h200, t4 = MODELS.load("Qwen/Qwen2.5-0.5B"), CARDS.get("h200"), CARDS.get("t4")
    answer = estimate(small, RunConfig(compute_dtype="float16", seq_len=512), h200)
    here = Budget.of(h200)
    on_t4 = standing(small, answer, t4, here)
    assert on_t4.device_bytes - answer.peak.device_bytes == ON_T4 - ON_H200
    assert standing(small, answer, h200, here).device_bytes == answer.peak.device_bytes
    # A card on which the run fits by what its own smaller context leaves.
    between = answer.floor_bytes - 64 * MIB
    card = replace(t4, memory_bytes=between, cuda_total_bytes=between)
    found = smallest_card(small, answer, [card], here)
    assert found is not None and found.card is card
    # And one on which it does not, because its context is larger than that of the card it was estimated on.
    answer = estimate(small, RunConfig(compute_dtype="float16", seq_len=512), t4)
    between = answer.floor_bytes + (ON_H200 - ON_T4) * 3 // 4
    card = replace(h200, memory_bytes=between, cuda_total_bytes=between)
    assert smallest_card(small, answer, [card], Budget.of(t4)) is None


@pytest.mark.parametrize(
    ("model", "attention", "experts", "router"),
    [
        # 2 x in x out of each product for one token; experts: how many a token takes, of three products each.
        ("Qwen/Qwen3-30B-A3B", 2 * 2048 * (4096 + 512 + 512 + 4096), 8 * 3 * 2 * 2048 * 768, 2 * 2048 * 128),
        ("mistralai/Mixtral-8x7B-v0.1", 2 * 4096 * (4096 + 1024 + 1024 + 4096), 2 * 3 * 2 * 4096 * 14336, 2 * 4096 * 8),
    ],
)
def test_operations_of_experts_and_their_router_are_those_of_the_config(
    model: str, attention: int, experts: int, router: int
) -> None:
    profile = MODELS.load(model)
    resolution = resolve(profile, RunConfig(target_modules="q_proj,v_proj"))
    trainer, _ = trainer_row(resolution.run.trainer or "trl-sft", resolution.stack)
    placement = Placement(profile, resolution.run)
    setting = setting_of(placement, trainer)
    (layer,) = layers_of(placement, setting)
    tokens = BASIS.index("tokens")
    forward, backward = layer.plain.forward.half_flops[tokens], layer.plain.backward.half_flops[tokens]
    assert forward == attention + experts + router
    # What is frozen is multiplied once on the way back, for the gradient of its input alone.
    assert backward == forward
