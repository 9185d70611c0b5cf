"""Checkpointing every n-th layer, and layer inputs in the host's memory: what is traced of a few layers is the run."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("trl")

from qlora_planner.catalog import OPTIMIZERS, TRAINER_ROWS
from qlora_planner.errors import RefusedError
from qlora_planner.memory.allocator.caching import CachingAllocator
from qlora_planner.memory.replay.events import prepare_trace
from qlora_planner.memory.replay.player import COMPONENTS, TraceReplayer
from qlora_planner.profiling.tracing import build, engine, layers
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Tape
from qlora_planner.train.options import checkpointed_layers, trainer_options
from tests.tracing import real_cpu, walk
from tests.tracing.specs import spec_of

WIDTHS: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 256,
}  # fmt: skip


def llama(depth: int) -> dict[str, Any]:
    return {**WIDTHS, "num_hidden_layers": depth}


def played(tape: Tape) -> tuple[dict[str, tuple[int, int]], int]:
    player = TraceReplayer(CachingAllocator(), prepare_trace(tape, True), [0] * len(COMPONENTS))
    player.play([], RunConfig(trainer="hf-trainer"), TRAINER_ROWS["hf-trainer"], OPTIMIZERS["sgd"])
    assert player.lost == 0
    return {name: (phase.peak.allocated, phase.peak.live) for name, phase in player.phases.items()}, player.host_peak


@pytest.mark.parametrize(("depth", "every", "offload"), [(11, 2, False), (10, 3, True), (13, 5, False)])
def test_a_few_layers_are_played_as_all_that_are_traced(
    depth: int, every: int, offload: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(
        trainer="hf-trainer", seq_len=96, rank=4, upcast=False, checkpoint_every=every, checkpoint_offload=offload
    )
    cut = engine.trace(llama(depth), spec)
    assert len(cut.kept) < depth
    monkeypatch.setattr(layers, "choose", layers.choose_all)
    whole, on_host = played(engine.trace(llama(depth), spec))
    assert (whole, on_host) == played(cut)
    inputs = 96 * 64 * 2  # a layer's, in 16 bits
    assert on_host == (-(-depth // every) * inputs if offload else 0)


def test_inputs_that_wait_on_the_host_leave_the_card() -> None:
    peaks = {}
    for offload in (False, True):
        spec = spec_of(trainer="hf-trainer", seq_len=96, rank=4, upcast=False, checkpoint_offload=offload)
        peaks[offload] = played(engine.trace(llama(12), spec))[0]["forward"][1]
    assert peaks[False] - peaks[True] >= 10 * 96 * 64 * 2


def test_a_real_step_allocates_what_was_traced_of_it() -> None:
    raw, every, (batch_size, seq_len, rank) = llama(10), 3, walk.DEEP
    model = real_cpu.real_model(raw, "all-linear", rank, False)
    base = model.get_base_model()
    base.gradient_checkpointing_enable(
        {"use_reentrant": False, "preserve_rng_state": False}, **checkpointed_layers(RunConfig(checkpoint_every=every))
    )
    base.enable_input_require_grads()
    assert [layer.gradient_checkpointing for layer in base.model.layers] == [True, False, False] * 3 + [True]
    step = real_cpu.read(real_cpu.profiled(model, batch_size, seq_len))
    real = tuple(max(step.peaks[f"{stage} {number}"] for number in (0, 1)) for stage in ("forward", "backward"))
    spec = walk.lora_spec(walk.DEEP, "all-linear", True).with_run(checkpoint_every=every)
    tape = engine.trace(raw, spec)
    assert len(tape.kept) < 10 and walk.played(tape, True) == real


def test_what_layers_without_checkpointing_keep_is_no_checkpoint() -> None:
    tape = engine.trace(llama(9), spec_of(seq_len=96, rank=4, upcast=False, checkpoint_every=3))
    script = prepare_trace(tape, True, checkpoint_every=3)
    names = [part.value for part in COMPONENTS]
    kept: dict[int, set[str]] = {}
    for segment, acts in script.acts.items():
        if (segment.stage, segment.name) == ("forward", "layer"):
            last = {names[part] for kind, storage, _, part in acts if kind == 0 and storage in script.origins}
            kept[tape.kept[segment.layer] % 3] = last - {"workspace"}
    assert kept == {0: {"checkpoints"}, 1: {"activations"}, 2: {"activations"}}


def test_layers_that_cannot_be_chosen_are_refused_by_name() -> None:
    model = build.skeleton({"model_type": "llama", **llama(6)}, None)
    for layer in layers.decoder_layers(model)[1]:
        layer.__class__ = type("Layer", (type(layer).__mro__[2],), {})
    with pytest.raises(RefusedError, match="--checkpoint-every"):
        layers.mark_checkpointed(model, 2)


def test_trainers_are_told_what_the_run_says_and_nothing_else() -> None:
    plain = trainer_options(RunConfig())["gradient_checkpointing_kwargs"]
    assert plain == {"use_reentrant": False}
    asked = trainer_options(RunConfig(checkpoint_every=4, checkpoint_offload=True))["gradient_checkpointing_kwargs"]
    assert asked == {"use_reentrant": False, "every_n_layers": 4, "offload": True}
    assert trainer_options(RunConfig(gradient_checkpointing=False)).get("gradient_checkpointing_kwargs") is None
