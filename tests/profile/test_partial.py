"""Runs that checkpoint some layers, answered from the tapes of those that checkpoint all of them and none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_planner.catalog import OPTIMIZERS, TRAINER_ROWS
from qlora_planner.memory.allocator.caching import CachingAllocator
from qlora_planner.memory.replay.events import prepare_trace
from qlora_planner.memory.replay.player import COMPONENTS, TraceReplayer
from qlora_planner.memory.sweep.validity import variants_of_some_layers
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import CompiledTape, Tape
from qlora_planner.spec.weaving.partial import UnlikeError, checkpoints_every

WIDTHS: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 256, "max_position_embeddings": 256,
}  # fmt: skip
MIXED: dict[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention"] * 5,
    "sliding_window": 32,
    "head_dim": 16,
}


def played(tape: Tape, every: int) -> tuple[dict[str, Any], int]:
    script = prepare_trace(tape, True, checkpoint_every=every)
    player = TraceReplayer(CachingAllocator(), script, [0] * len(COMPONENTS))
    player.play([], RunConfig(trainer="hf-trainer"), TRAINER_ROWS["hf-trainer"], OPTIMIZERS["sgd"])
    figures = {name: (phase.peak, phase.components) for name, phase in player.phases.items()}
    return figures, player.lost


@pytest.mark.parametrize(
    ("model_type", "fields", "depth", "every", "trainer"),
    [
        ("llama", {}, 10, 2, "trl-sft"),
        ("qwen2", {}, 11, 4, "trl-sft"),  # biases: a kernel takes a workspace
        ("gemma2", MIXED, 10, 3, "hf-trainer"),  # two kinds of layers
        ("granite", {"embedding_multiplier": 12.0}, 9, 2, "trl-sft"),  # embeddings have a gradient
    ],
)
def test_two_tapes_make_the_one_that_is_traced(
    model_type: str, fields: dict[str, Any], depth: int, every: int, trainer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl")
    from qlora_planner.profiling.tracing import engine, layers
    from tests.tracing.specs import spec_of

    raw = {"model_type": model_type, **WIDTHS, **fields, "num_hidden_layers": depth}

    def traced(**options: Any) -> Tape:
        return engine.trace(raw, spec_of(trainer=trainer, seq_len=96, rank=4, upcast=False, **options))

    whole, none = (CompiledTape.of(traced(gradient_checkpointing=on), "one") for on in (True, False))
    made = checkpoints_every(whole, none, every).at(1, 1, 1)
    monkeypatch.setattr(layers, "choose", layers.choose_all)
    assert played(made, every) == played(traced(checkpoint_every=every), every)


def test_variants_are_those_of_the_runs_with_all_and_no_checkpoints() -> None:
    words = "sm90 qlora nf4 dq bfloat16 trl-sft all-linear dropout sdpa"
    assert variants_of_some_layers(f"{words} every3 padding") == (f"{words} padding", f"{words} kept padding", 3)
    assert variants_of_some_layers(f"{words} padding") is None
    assert variants_of_some_layers(f"{words} every3 host") is None
    assert variants_of_some_layers(f"{words} every3 reentrant") is None


def test_tapes_of_other_layers_make_none() -> None:
    tape = CompiledTape(
        variant="one", sizes=(), workspace_sizes=(), events=(), segments=(), places=(0, 1, 1, 2), kept=(0, 1, 3)
    )
    with pytest.raises(UnlikeError, match="other layers"):
        checkpoints_every(tape, replace(tape, places=(0, 1, 2, 3), kept=(0, 1, 2, 3)), 2)
