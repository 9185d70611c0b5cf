"""One budget: what a card leaves to a process, and that an estimate asks nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qlora_planner.errors import InputError
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.estimate import estimate, estimate_within
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.spec.machine import GpuSpec, Machine
from qlora_planner.spec.run import RunConfig
from qlora_planner.units import GIB, MIB

PROFILE = ModelCatalogue([Path(__file__).parents[2] / "profiles" / "models"]).load("Qwen/Qwen2.5-0.5B")
CARD = GpuSpec(name="t4", label="T4", memory_bytes=15360 * MIB, compute_capability="7.5", bf16=False)
CONTEXT = 141 * MIB  # measured on every T4 of a public archive


def test_a_reserve_is_taken_off_byte_by_byte_and_below_zero_refused() -> None:
    whole, less = Budget.of(CARD), Budget.of(CARD, reserve_bytes=800 * MIB)
    assert whole.usable_bytes - less.usable_bytes == 800 * MIB
    assert less.usable is not None
    assert "800 MiB held back" in less.usable[1]
    with pytest.raises(InputError):
        Budget.of(CARD, reserve_bytes=-1)


def test_a_cap_limits_torch_alone_and_only_where_it_is_less_than_the_card() -> None:
    capped, roomy = Budget.of(CARD, cap_bytes=4 * GIB), Budget.of(CARD, cap_bytes=15 * GIB)
    assert capped.capped
    assert capped.usable_bytes == 4 * GIB + CONTEXT
    assert not roomy.capped
    assert roomy.usable == Budget.of(CARD).usable


def test_libraries_of_a_run_move_the_context_and_what_a_cap_leaves() -> None:
    budget = Budget.of(CARD, cap_bytes=4 * GIB)
    assert budget.for_run(RunConfig()) is budget
    int8 = budget.for_run(RunConfig(quant="int8"))
    assert int8.context.total_bytes - CONTEXT == 64 * MIB  # bitsandbytes' own cuBLASLt handle
    assert int8.usable_bytes - budget.usable_bytes == 64 * MIB


def test_the_largest_floor_is_the_last_that_stays_under_its_chance() -> None:
    budget = Budget.of(CARD)
    largest = budget.largest_floor(TRACED, budget.context, 0.01)
    assert budget.probability_oom(largest, TRACED) <= 0.01
    assert budget.probability_oom(largest + MIB, TRACED) > 0.01


def test_a_changed_budget_does_not_answer_with_the_floors_of_the_old_one() -> None:
    budget = Budget.of(CARD)
    first = budget.largest_floor(TRACED, budget.context, 0.01)
    half = replace(budget, usable=(budget.usable_bytes // 2, "half a card"))
    assert half.largest_floor(TRACED, half.context, 0.01) < first


def test_without_a_card_there_is_a_context_and_no_verdict() -> None:
    budget = Budget.of(None)
    assert budget.gpu is None
    assert budget.context.total_bytes > 0
    assert estimate_within(budget, PROFILE, RunConfig()).fit is None


def test_the_card_of_a_rank_is_the_machines() -> None:
    other = replace(CARD, name="another")
    budget = replace(Budget.of(CARD), machine=Machine(gpus=(CARD, other)), rank=1)
    assert budget.card is other
    assert Machine.of(CARD).gpus == (CARD,)


def test_keywords_of_an_estimate_make_the_same_budget() -> None:
    run = RunConfig(seq_len=512)
    typed = estimate(PROFILE, run, CARD, reserve_bytes=MIB, cap_bytes=4 * GIB)
    assert typed == estimate_within(Budget.of(CARD, reserve_bytes=MIB, cap_bytes=4 * GIB), PROFILE, run)
