"""Traces of toy models: exactness in depth, determinism, and that nothing stays patched."""

from __future__ import annotations

import gc
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")

from qlora_planner.profiling.tracing import engine  # noqa: E402
from qlora_planner.profiling.tracing.cuda_semantics import CudaTraits, attention_backend  # noqa: E402
from qlora_planner.profiling.tracing.extrapolate import extrapolate  # noqa: E402
from qlora_planner.profiling.tracing.spec import TraceSpec  # noqa: E402


def toy(layers: int) -> dict[str, Any]:
    """A small Llama."""
    return {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "max_position_embeddings": 512,
    }


@pytest.mark.parametrize("trainer", ["trl-sft", "hf-trainer", "loop"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_extrapolated_depth_equals_a_trace_of_all_layers(
    trainer: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TraceSpec(seq_len=128, trainer=trainer, gradient_checkpointing=checkpointing, rank=8)
    short = extrapolate(engine.trace(toy(7), spec))
    from qlora_planner.profiling.tracing import layers

    original = layers.choose

    def all_layers(model: Any) -> Any:
        cut = original(model)
        return layers.Cut(list_name=cut.list_name, order=cut.order, kept=tuple(range(len(cut.order))))

    monkeypatch.setattr(layers, "choose", all_layers)
    assert extrapolate(engine.trace(toy(7), spec)) == short


def test_the_same_run_gives_the_same_tape() -> None:
    spec = TraceSpec(seq_len=64)
    first, second = engine.trace(toy(2), spec), engine.trace(toy(2), spec)
    assert [(event.size, event.op) for event in first.events] == [(event.size, event.op) for event in second.events]
    assert first.segments == second.segments


def test_other_sizes_give_the_same_sequence_of_operators() -> None:
    # Within the same breakpoints: bitsandbytes' token limit of its fused kernel, optimizers' rules by tensor size.
    one = engine.trace(toy(2), TraceSpec(seq_len=1600, batch_size=1, rank=8, optimizer="sgd"))
    two = engine.trace(toy(2), TraceSpec(seq_len=896, batch_size=2, rank=24, optimizer="sgd"))
    assert [event.op for event in one.events] == [event.op for event in two.events]


def test_tracing_leaves_nothing_behind() -> None:
    attention = torch.nn.functional.scaled_dot_product_attention
    engine.trace(toy(2), TraceSpec(seq_len=32))
    assert torch.nn.functional.scaled_dot_product_attention is attention
    assert gc.isenabled()
    assert not torch.is_autocast_enabled("cuda")


def test_fp32_grouped_heads_fall_back_to_math_attention() -> None:
    query = torch.empty(1, 8, 16, 64, device="meta")
    key = torch.empty(1, 2, 16, 64, device="meta")
    assert attention_backend(CudaTraits(), query, key, key, None, 0.0, True) == "math"
    assert attention_backend(CudaTraits(), query, query, query, None, 0.0, False) == "efficient"
    half = query.bfloat16()
    assert attention_backend(CudaTraits(), half, half, half, None, 0.0, False) == "cudnn"
    ampere = CudaTraits(capability=(8, 0), multiprocessors=108)
    assert attention_backend(ampere, half, half, half, None, 0.0, False) == "flash"
