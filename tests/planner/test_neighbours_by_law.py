"""What lies around a run, by laws that no single figure shows: against runs typed anew, and rung by rung."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlora_planner.catalog.gpus import GpuCatalogue
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.planner.candidate_memory import CandidateFactory, Scale
from qlora_planner.planner.neighbours import ladder, prices
from qlora_planner.planner.records import Price
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.tapes import stored_sweep
from qlora_planner.spec.run import RunConfig

PROFILES = Path(__file__).parents[2] / "profiles"
MODELS = ModelCatalogue([PROFILES / "models"])
CARD = GpuCatalogue([PROFILES / "gpus"]).get("rtx-4090")
LLAMA = MODELS.load("meta-llama/Llama-3.2-1B")
SWEEP = stored_sweep(LLAMA, [PROFILES / "tapes"])


def floor_of(factory: CandidateFactory, run: RunConfig) -> int:
    """Bytes from which a run works on, ranked."""
    resolution = resolve(factory.profile, run, factory.gpu)
    batch, seq = (np.array([size], dtype=np.int64) for size in (resolution.run.batch_size, resolution.run.seq_len))
    return int(factory.make(resolution).floors(batch, seq)[0][0])


def pace_of(factory: CandidateFactory, run: RunConfig) -> float:
    """Tokens per second."""
    resolution = resolve(factory.profile, run, factory.gpu)
    model = factory.pace(resolution, CARD)
    assert model is not None
    return float(model.tokens_per_s(resolution.run.batch_size, resolution.run.seq_len, resolution.run.rank))


def answered(factory: CandidateFactory, run: RunConfig, **options: Any) -> Iterator[Price]:
    """The prices that were not refused."""
    resolved = resolve(factory.profile, run, CARD).run
    return (price for price in prices(factory, resolved, CARD, **options) if price.refused is None)


@pytest.mark.parametrize(
    ("model", "run"),
    [
        ("meta-llama/Llama-3.2-1B", RunConfig()),  # a second sequence in a batch brings padding
        ("meta-llama/Llama-3.2-1B", RunConfig(batch_size=2, packing=True)),  # another trainer packs nothing, and pads
        ("Qwen/Qwen3-30B-A3B", RunConfig()),  # no dropout while experts are adapted, and some for attention alone
    ],
)
def test_a_price_is_that_of_the_run_typed_anew(model: str, run: RunConfig) -> None:
    factory = CandidateFactory.of(MODELS.load(model), Budget.of(CARD), None)
    here, pace_here = floor_of(factory, run), pace_of(factory, run)
    rows = list(answered(factory, run))
    assert {"batch_size", "target_modules", "trainer"} <= {price.knob for price in rows}
    for price in rows:
        typed = run.with_(**price.change)
        assert price.bytes == floor_of(factory, typed) - here, price.change
        if not typed.activation_offloading:  # what copies to the host cost is not modelled
            assert price.speed == pytest.approx(pace_of(factory, typed) / pace_here), price.change


def test_a_neighbour_fits_by_what_playing_said_of_the_run_itself() -> None:
    """Ranked, the run needs more than the card has; played, half of that: what takes a little more fits too."""
    run = RunConfig(seq_len=16384, batch_size=2)
    small = Budget.of(CARD, cap_bytes=9 << 30)
    factory = CandidateFactory.of(LLAMA, small, None)
    ranked = floor_of(factory, run)
    assert ranked > small.usable_bytes > ranked * 0.6
    by_rank, by_play = (
        {(price.knob, *price.change.values()): price for price in answered(factory, run, scale=scale)}
        for scale in (Scale(), Scale(closed=0.5))
    )
    rank = ("rank", 32)
    assert by_rank[rank].bytes == by_play[rank].bytes and 0 < (by_play[rank].bytes or 0) < 200 << 20
    assert (by_rank[rank].fits, by_play[rank].fits) == (False, True)
    # Twice the length takes more than the other half.
    assert by_play["seq_len", 32768].fits is False


def test_a_run_that_no_trace_holds_for_has_no_figure_beside_one_that_is_traced() -> None:
    traced, closed = (
        {tuple(price.change.items()): price.bytes for price in answered(factory, RunConfig())}
        for factory in (CandidateFactory.of(LLAMA, Budget.of(CARD), sweep) for sweep in (SWEEP, None))
    )
    assert traced.keys() == closed.keys()
    assert closed[("attention", "eager"),] is not None
    assert traced[("attention", "eager"),] is None  # no closed form beside a run that is traced
    assert traced[("seq_len", 2 * RunConfig().seq_len),] != closed[("seq_len", 2 * RunConfig().seq_len),]


def test_what_rungs_free_adds_up_to_what_lies_between_the_first_and_the_last() -> None:
    run = resolve(LLAMA, RunConfig(batch_size=8, gradient_checkpointing=False, optimizer="adamw_torch"), CARD).run
    factory = CandidateFactory.of(LLAMA, Budget.of(CARD), None)
    rungs = list(ladder(factory, run, CARD))
    assert len(rungs) > 5
    lower = run
    for rung in rungs:
        lower = lower.with_(**rung.change)
        assert rung.bytes == floor_of(factory, lower) - floor_of(factory, run)
