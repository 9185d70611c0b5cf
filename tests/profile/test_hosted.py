"""Runs whose checkpoints lie on the host, answered from tapes of runs whose lie on the card and that keep all."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_planner.memory.sweep.validity import variants_on_card
from qlora_planner.session.session import Session
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import CompiledTape, Tape
from qlora_planner.spec.weaving.hosted import inputs_on_host
from tests.profile.test_partial import WIDTHS, played

WORDS = "sm90 qlora nf4 dq bfloat16 trl-sft all-linear dropout sdpa"


@pytest.mark.parametrize(("model_type", "trainer"), [("llama", "hf-trainer"), ("gpt_neox", "hf-trainer")])
def test_two_tapes_make_the_one_that_is_traced(model_type: str, trainer: str) -> None:
    pytest.importorskip("trl")
    from qlora_planner.memory.replay.events import prepare_trace
    from qlora_planner.profiling.tracing import engine
    from tests.tracing.specs import spec_of

    raw = {"model_type": model_type, **WIDTHS, "num_hidden_layers": 7}

    def traced(**options: Any) -> Tape:
        return engine.trace(raw, spec_of(trainer=trainer, seq_len=96, rank=4, upcast=False, **options))

    card, kept = (CompiledTape.of(traced(gradient_checkpointing=on), "one") for on in (True, False))
    made, asked = inputs_on_host(card, kept).at(1, 1, 1), traced(checkpoint_offload=True)
    assert sum(size for number, size in made.events if number in made.on_host) == sum(
        size for number, size in asked.events if number in asked.on_host
    )
    (figures, lost), (wanted, _) = played(made, 1), played(asked, 1)
    peaks = [{name: peak.allocated for name, (peak, _) in each.items()} for each in (figures, wanted)]
    assert lost == 0 and prepare_trace(made, True).tape.on_host
    if model_type == "llama":
        assert peaks[0] == peaks[1]
    # Its first layer takes 16-bit embeddings where the others take float32: that copy is taken to stay.
    assert all(0 <= peaks[0][name] - peaks[1][name] <= 96 * 64 * 2 for name in peaks[1])


def test_the_runs_that_lie_on_the_card_are_named() -> None:
    assert variants_on_card(f"{WORDS} host padding") == (f"{WORDS} padding", f"{WORDS} kept padding")
    assert variants_on_card(f"{WORDS} every4 host") is None
    assert variants_on_card(f"{WORDS} padding") is None
    assert variants_on_card(f"{WORDS} host reentrant") is None


def test_checkpoints_of_llama_wait_on_the_host() -> None:
    bench = Session(stored_only=True).on("rtx-4090")
    card, host = (
        bench.estimate("meta-llama/Llama-3.1-8B", RunConfig(checkpoint_offload=on)).estimate for on in (False, True)
    )
    inputs = 2 * 2048 * 4096  # a layer's, in 16 bits
    assert (card.method, host.method) == ("traced", "traced")
    assert 20 * inputs < card.peak.allocated_bytes - host.peak.allocated_bytes < 32 * inputs
    assert host.host is not None and host.host.offloaded_bytes == 32 * inputs
