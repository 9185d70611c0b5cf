"""Traces of toy models: exactness in depth, determinism, and that nothing stays patched."""

from __future__ import annotations

import gc
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")

from qlora_planner.catalog import OPTIMIZERS, TRAINER_ROWS  # noqa: E402
from qlora_planner.memory.allocator.caching import CachingAllocator  # noqa: E402
from qlora_planner.memory.replay.events import prepare_trace  # noqa: E402
from qlora_planner.memory.replay.player import COMPONENTS, TraceReplayer  # noqa: E402
from qlora_planner.profiling.tracing import engine, layers  # noqa: E402
from qlora_planner.profiling.tracing.cuda.semantics import CudaTraits, attention_backend  # noqa: E402
from qlora_planner.spec.run import RunConfig  # noqa: E402
from qlora_planner.spec.trace import CompiledTape, Tape  # noqa: E402
from tests.tracing.specs import spec_of  # noqa: E402
from tests.wide import some  # noqa: E402
from tools.compiling import compile_tapes  # noqa: E402


def toy(depth: int) -> dict[str, Any]:
    """A small Llama."""
    return {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": depth,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "max_position_embeddings": 512,
    }


def played(tape: Tape, checkpointing: bool = True) -> dict[str, tuple[int, int]]:
    """Allocated and reserved peaks by phase, of the tape alone."""
    player = TraceReplayer(CachingAllocator(), prepare_trace(tape, checkpointing), [0] * len(COMPONENTS))
    player.play([], RunConfig(trainer="loop"), TRAINER_ROWS["loop"], OPTIMIZERS["sgd"])
    assert player.lost == 0
    return {name: (phase.peak.allocated, phase.peak.reserved) for name, phase in player.phases.items()}


@pytest.mark.parametrize("trainer", some(["trl-sft", "hf-trainer", "loop"], 2))
@pytest.mark.parametrize("checkpointing", [True, False])
def test_playing_a_cut_model_equals_a_trace_of_all_layers(
    trainer: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(seq_len=128, trainer=trainer, gradient_checkpointing=checkpointing, rank=8)
    cut = engine.trace(toy(7), spec)
    assert len(cut.kept) < 7
    original = layers.choose

    def all_layers(model: Any) -> Any:
        found = original(model)
        return layers.Cut(list_name=found.list_name, order=found.order, kept=tuple(range(len(found.order))))

    monkeypatch.setattr(layers, "choose", all_layers)
    assert played(engine.trace(toy(7), spec), checkpointing) == played(cut, checkpointing)


@pytest.mark.parametrize(
    "options",
    [
        {},
        # Adapters in float32, whose casts autocast keeps by address and drops in no order of its own.
        {"trainer": "hf-trainer", "gradient_checkpointing": False},
        {"method": "lora", "quant": "none", "upcast": False, "use_reentrant": True},
    ],
    ids=lambda options: " ".join(options) or "usual",
)
def test_the_same_run_gives_the_same_tape(options: dict[str, Any]) -> None:
    spec = spec_of(seq_len=64, **options)
    assert engine.trace(toy(2), spec) == engine.trace(toy(2), spec)


def test_a_compiled_tape_equals_a_trace_at_sizes_that_were_not_traced() -> None:
    spec = spec_of(upcast=False)

    def trace(point: tuple[int, int, int]) -> Tape:
        batch, seq, rank = point
        return engine.trace(toy(5), spec.with_run(batch_size=batch, seq_len=seq, rank=rank))

    compiled = compile_tapes(trace, [(1, 640, 8), (1, 896, 24), (1, 1408, 56)], (1, 1152, 40), "toy")
    again = CompiledTape.from_dict(compiled.to_dict())
    direct = trace((1, 1024, 12))
    assert played(again.at(1, 1024, 12)) == played(direct)
    assert [bool(size) for _, size in again.at(1, 1024, 12).events] == [bool(size) for _, size in direct.events]


def test_tracing_leaves_nothing_behind() -> None:
    attention = torch.nn.functional.scaled_dot_product_attention
    engine.trace(toy(2), spec_of(seq_len=32))
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
