"""The smallest change: searched by closed forms on a real profile, where every estimate takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qlora_planner.exchange.suggestions import Remedy, remedies
from qlora_planner.memory import MemoryEstimate
from qlora_planner.memory.estimate import estimate
from qlora_planner.session import load_gpu, load_model
from qlora_planner.spec.run import RunConfig

RUN = RunConfig(trainer="hf-trainer", lora_dropout=0.0, seq_len=2048, rank=16)
Look = Callable[[RunConfig], MemoryEstimate]


def look_at(card: str) -> Look:
    """Closed-form estimates on a card."""
    profile, gpu = load_model("llama-3.1-8b"), load_gpu(card)
    return lambda run: estimate(profile, run, gpu)


def found(run: RunConfig, card: str) -> list[Remedy]:
    look = look_at(card)
    start = look(run)
    assert start.verdict != "fits"
    return remedies(start.run, start, look, look, lambda _floor: pytest.fail("closed forms judge by themselves"))


def test_the_least_harmful_comes_first_and_fits() -> None:
    first, second = found(RUN.with_(batch_size=8), "24GB")
    assert set(first.changes) == {"batch_size", "grad_accum"}
    assert first.changes["batch_size"] * first.changes["grad_accum"] == 8
    assert first.estimate.verdict == second.estimate.verdict == "fits"
    assert first.costs


def test_no_milder_step_of_a_direction_fits() -> None:
    look = look_at("24GB")
    run = look(RUN.with_(seq_len=8192)).run
    remedy = next(one for one in found(run, "24GB") if set(one.changes) == {"seq_len"})
    length = remedy.changes["seq_len"]
    assert length % 64 == 0
    assert look(run.with_(seq_len=length)).verdict == "fits"
    assert look(run.with_(seq_len=length + 64)).verdict != "fits"


def test_checkpointing_before_the_batch() -> None:
    changes = [set(one.changes) for one in found(RUN.with_(gradient_checkpointing=False, batch_size=2), "24GB")]
    assert changes[0] == {"gradient_checkpointing"}


def test_what_is_on_already_is_not_offered() -> None:
    for one in found(RUN.with_(batch_size=64, seq_len=4096), "24GB"):
        assert not {"gradient_checkpointing", "optimizer", "double_quant"} & set(one.changes)


def test_a_sixteen_bit_base_is_rounded_before_the_sequence_is_cut_deeply() -> None:
    run = RUN.with_(method="lora", quant="none", seq_len=1024)
    first = found(run, "16GB")[0]
    assert first.changes["quant"] == "nf4"


def test_several_changes_of_which_each_is_needed() -> None:
    run = RUN.with_(batch_size=8, seq_len=8192, gradient_checkpointing=False, optimizer="adamw_torch", rank=256)
    look = look_at("24GB")
    start = look(run).run
    remedy = found(run, "24GB")[0]
    assert len(remedy.changes) > 2
    assert look(start.with_(**remedy.changes)).verdict == "fits"
    for left_out in ({"optimizer"}, {"gradient_checkpointing"}, {"batch_size", "grad_accum"}, {"seq_len"}):
        fewer = {name: value for name, value in remedy.changes.items() if name not in left_out}
        assert fewer == remedy.changes or look(start.with_(**fewer)).verdict != "fits"


def test_nothing_helps_where_the_weights_alone_are_too_large() -> None:
    assert found(RUN, "4GiB") == []


def test_a_quick_look_that_is_off_is_put_right_by_real_ones() -> None:
    real = look_at("24GB")

    class Off:
        """Floors that are a fifth too low."""

        def __init__(self, answer: MemoryEstimate) -> None:
            self.verdict, self.floor_bytes = answer.verdict, int(0.8 * answer.floor_bytes)

    run = RUN.with_(seq_len=8192)
    start = real(run)
    usable = start.fit.usable_bytes if start.fit else 0
    answers = remedies(start.run, start, real, lambda one: Off(real(one)), lambda floor: floor < usable)  # type: ignore[arg-type,return-value]
    assert answers
    assert all(one.estimate.verdict in ("fits", "tight") for one in answers)
