"""The ladder: each rung takes less, keeps the effective batch as long as it can, and says what it changes."""

from __future__ import annotations

from itertools import pairwise

import pytest

from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.planner.fallbacks import fallbacks, keeps_states
from qlora_planner.session import load_gpu, load_model
from qlora_planner.spec.run import RunConfig

PROFILE = load_model("llama-3.1-8b")


def resolved(**options: object) -> RunConfig:
    return resolve(PROFILE, RunConfig(**options)).run  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 2, 3, 6, 7, 8, 12])
def test_micro_batches_shrink_first_and_keep_the_effective_batch(batch: int) -> None:
    run = resolved(batch_size=batch, grad_accum=3)
    found = [lower for lower, _ in fallbacks(run, PROFILE)]
    batches = [lower.batch_size for lower in found]
    assert all(lower.batch_size * lower.grad_accum == 3 * batch for lower in found)
    assert batches == sorted(batches, reverse=True) and batches[-1] == 1
    if batch > 1:
        assert batches[0] == batch // min(f for f in range(2, batch + 1) if batch % f == 0)
        assert found[batches.index(1)].padding is False  # a batch of one has nothing to pad


def test_a_sharded_run_keeps_an_optimizer_that_takes_shards() -> None:
    run = resolved(parallel="fsdp2", optimizer="adamw_torch_fused", batch_size=2, gradient_checkpointing=False)
    found = [lower for lower, _ in fallbacks(run, PROFILE)]
    assert found[-1].gradient_checkpointing and found[-1].seq_len < run.seq_len
    assert {(lower.optimizer, lower.activation_offloading) for lower in found} == {("adamw_torch_fused", False)}


def test_every_rung_is_estimated_to_take_no_more_than_the_one_above() -> None:
    run = resolved(batch_size=8, gradient_checkpointing=False, optimizer="adamw_torch", seq_len=2048)
    chain = [run, *(lower for lower, _ in fallbacks(run, PROFILE))]
    assert len(chain) == len({repr(lower) for lower in chain})
    # Offloading pays for long sequences alone, which is why a launch asks the estimate before it takes a rung.
    chain = [lower for lower in chain if lower.activation_offloading == (lower.seq_len < run.seq_len)]
    gpu = load_gpu("24GB")
    peaks = [estimate(PROFILE, lower, gpu).peak.device_bytes for lower in chain]
    assert all(above >= below for above, below in pairwise(peaks)) and peaks[0] > 2 * peaks[-1]


def test_the_order_and_that_the_last_resort_is_loud() -> None:
    run = resolved(gradient_checkpointing=False, optimizer="adamw_torch", seq_len=1024)
    found = list(fallbacks(run, PROFILE))
    changed = [
        next(n for n in RunConfig.__dataclass_fields__ if getattr(a, n) != getattr(b, n))
        for a, b in pairwise([run, *(r for r, _ in found)])
    ]
    assert changed == ["gradient_checkpointing", "optimizer", "activation_offloading", "seq_len", "seq_len"]
    loud = [says for _, says in found if says[:9].isupper()]
    assert len(loud) == 2 and "SEQUENCES CUT TO 512 TOKENS" in loud[0]


def test_what_a_run_has_already_is_no_rung() -> None:
    run = resolved(activation_offloading=True, seq_len=300)
    assert list(fallbacks(run, PROFILE)) == []
    assert list(fallbacks(resolved(trainer="hf-trainer", seq_len=300), PROFILE)) == []  # offloading is trl's


def test_evaluation_batches_shrink_where_evaluation_ran_out() -> None:
    run = resolved(batch_size=2, eval_batch_size=4)
    first, second, third = [lower for lower, _ in fallbacks(run, PROFILE, phase="eval")][:3]
    assert (first.eval_batch_size, second.eval_batch_size, third.batch_size) == (2, 1, 1)
    assert first.batch_size == second.batch_size == 2


def test_states_survive_paging_and_nothing_else() -> None:
    assert keeps_states("adamw_8bit", "paged_adamw_8bit")
    assert not keeps_states("adamw_torch", "paged_adamw_8bit")


@pytest.mark.parametrize("evaluated", [1, 3, 8])
def test_no_rung_evaluates_larger_batches_than_it_trains(evaluated: int) -> None:
    found = [lower for lower, _ in fallbacks(resolved(batch_size=8, eval_batch_size=evaluated), PROFILE)]
    smaller = [lower for lower in found if lower.batch_size < 8]
    assert smaller
    assert all((lower.eval_batch_size or 0) in range(1, lower.batch_size + 1) for lower in smaller)
