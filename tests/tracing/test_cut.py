"""Cutting a model down loses nothing where layers read each other's keys, and workspaces are counted once."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("trl")

from qlora_planner.catalog import OPTIMIZERS, TRAINER_ROWS
from qlora_planner.memory.allocator.caching import CachingAllocator
from qlora_planner.memory.replay.events import prepare_trace
from qlora_planner.memory.replay.player import COMPONENTS, TraceReplayer
from qlora_planner.profiling.tracing import engine, layers
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Segment, Tape
from tests.tracing.specs import spec_of


def shared_keys(depth: int, shared: int) -> dict[str, Any]:
    """Sliding and full attention by turns, the last `shared` layers without keys of their own."""
    return {
        "model_type": "gemma4_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": depth,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "global_head_dim": 32, "vocab_size": 256,
        "vocab_size_per_layer_input": 256, "hidden_size_per_layer_input": 16, "num_kv_shared_layers": shared,
        "sliding_window": 32, "max_position_embeddings": 256,
        "layer_types": ["full_attention" if (i + 1) % 3 == 0 else "sliding_attention" for i in range(depth)],
    }  # fmt: skip


def played(tape: Tape) -> dict[str, tuple[int, int]]:
    player = TraceReplayer(CachingAllocator(), prepare_trace(tape, True), [0] * len(COMPONENTS))
    player.play([], RunConfig(trainer="loop"), TRAINER_ROWS["loop"], OPTIMIZERS["sgd"])
    assert player.lost == 0
    return {name: (phase.peak.allocated, phase.peak.live) for name, phase in player.phases.items()}


def test_shared_keys_are_played_as_traced_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    config, spec = shared_keys(18, 9), spec_of(seq_len=64, rank=4, upcast=False)
    cut = engine.trace(config, spec)
    assert len(cut.kept) < 18
    original = layers.choose

    def all_layers(model: Any) -> Any:
        found = original(model)
        return layers.Cut(list_name=found.list_name, order=found.order, kept=tuple(range(len(found.order))))

    monkeypatch.setattr(layers, "choose", all_layers)
    assert played(engine.trace(config, spec)) == played(cut)


def test_a_workspace_taken_before_training_is_the_handles_own() -> None:
    """A model whose first product has a bias takes the small buffer before the handle's workspace."""
    small, handle = 1 << 20, 32 << 20
    segment = Segment(stage="forward", name="head", layer=-1, step=0, micro_step=0, start=0, stop=4)
    tape = Tape(
        events=((1, small), (2, handle), (3, 512), (3, 0)), segments=(segment,), places=(), kept=(),
        workspaces=frozenset({1, 2}),
    )  # fmt: skip
    sizes = [size for _, _, size, _ in prepare_trace(tape, True, workspace_taken=True).acts[segment] if size]
    assert sizes == [small, 512]
