"""Generating tokens on a fake CPU against torch's own allocator events of the same on a real one."""

from __future__ import annotations

import gc
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("trl")

from torch.profiler import ProfilerActivity, profile, record_function  # noqa: E402
from transformers import GenerationConfig  # noqa: E402

from qlora_planner.profiling.tracing import engine  # noqa: E402
from qlora_planner.spec.trace import TOKENS, Tape  # noqa: E402
from tests.tracing.real_cpu import quiet, read, real_model  # noqa: E402
from tests.tracing.specs import spec_of  # noqa: E402

ROWS, PROMPT = 3, 21
SMALL = {
    "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "max_position_embeddings": 128,
}  # fmt: skip


def live(tape: Tape) -> tuple[int, int]:
    """The most that is alive, and what is alive at the end."""
    sizes: dict[int, int] = {}
    total = most = 0
    for storage, size in tape.events:
        total += size or -sizes.pop(storage)
        if size:
            sizes[storage] = size
        most = max(most, total)
    return most, total


def really(raw: dict[str, Any]) -> tuple[int, int]:
    """The same of transformers' own `generate` for as many tokens as are traced, from torch's allocator events."""
    quiet()
    model = real_model(raw, "all-linear", 8, checkpointing=False)
    vocabulary = raw["vocab_size"]
    config = GenerationConfig(
        max_new_tokens=1 + len(TOKENS), do_sample=True, pad_token_id=vocabulary - 1, bos_token_id=None,
        eos_token_id=[vocabulary - 2], temperature=1.0, top_p=1.0, top_k=0, disable_compile=True,
    )  # fmt: skip
    gc.collect()
    gc.disable()
    try:
        with (
            profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
            record_function("walk::forward 0"),
            torch.no_grad(),
        ):
            ids = torch.arange(ROWS * PROMPT).remainder(vocabulary - 8).add(3).view(ROWS, PROMPT)
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
            del ids
    finally:
        gc.enable()
    results: Any = profiler.profiler
    step = read(results.kineto_results.experimental_event_tree())
    return step.peaks["forward 0"], step.ends["forward 0"]


# Generation itself runs without the autocast that the trainer puts around its forward pass.
@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "olmo2"])
def test_the_bytes_alive_while_tokens_are_generated_are_those_of_a_real_cpu(model_type: str) -> None:
    raw = {"model_type": model_type, **SMALL}
    spec = spec_of(
        trainer="trl-grpo", method="lora", quant="none", upcast=False, attention="eager", lora_dropout=0.0, rank=8,
        alpha=16, batch_size=ROWS, prompt_len=PROMPT, completion_len=1 + len(TOKENS), steps_per_generation=1,
        gradient_checkpointing=False, target_modules="all-linear", on_cpu=True,
    )  # fmt: skip
    most, left = live(engine._generation(raw, spec))
    real_most, real_left = really(raw)
    assert (most, left) == (real_most, real_left)
