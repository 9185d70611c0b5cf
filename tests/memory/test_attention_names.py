"""Attention kernels by the names that people use: the nearest one that is modelled, or no verdict."""

from __future__ import annotations

import pytest

from qlora_planner import RunConfig, load_gpu, load_model
from qlora_planner.catalog.attention import nearest_kernel
from qlora_planner.memory.estimate import estimate
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.memory.weights.targets import as_traced

LLAMA = "llama-3.1-8b"


def of(attention: str, card: str = "24GB") -> MemoryEstimate:
    return estimate(load_model(LLAMA), RunConfig(attention=attention), gpu=load_gpu(card))


@pytest.mark.parametrize(
    ("name", "at_most"),
    [
        ("kernels-community/flash-attn2", 0.0),
        ("kernels-community/flash-attn2@v1", 0.0),
        ("flash_attention_3", 0.05),
        ("flex_attention", 0.05),
        ("xformers", 0.05),
        ("somebody/attention", None),
        ("sage", None),
    ],
)
def test_a_kernel_is_taken_as_the_nearest_one_with_how_far_that_may_be_off(name: str, at_most: float | None) -> None:
    near = nearest_kernel(name)
    assert near is not None and (near.kernel, near.at_most) == ("flash_attention_2", at_most)
    run = resolve(load_model(LLAMA), RunConfig(attention=name)).run
    assert run.attention == name and as_traced(load_model(LLAMA), run).attention == "flash_attention_2"
    kept = [thing.at_most for thing in of(name).unmodelled]
    assert kept == ([] if at_most == 0 else [at_most])


def test_a_kernel_that_nobody_knows_takes_the_verdict_away() -> None:
    assert of("somebody/attention").verdict == "cannot-say"
    assert of("flash_attention_3").verdict == of("flash_attention_2").verdict
    assert of("kernels-community/flash-attn3", "t4").verdict == "will-not-run"


def test_words_that_name_no_kernel_are_refused() -> None:
    assert nearest_kernel("sdpa") is nearest_kernel("flash") is nearest_kernel(None) is None
    refused = resolve(load_model(LLAMA), RunConfig(attention="magic")).problems
    assert any(problem.code == "attention-refused" for problem in refused)


def test_flex_attention_makes_what_flash_attention_2_makes_and_a_number_for_each_head_and_row() -> None:
    """By torch's own shapes of the operator: nothing in it grows with the square of the sequence."""
    torch = pytest.importorskip("torch")
    operator = pytest.importorskip("torch._higher_order_ops.flex_attention")
    batch, heads, length, width = 2, 32, 4096, 128
    with torch._subclasses.fake_tensor.FakeTensorMode():
        query = torch.empty(batch, heads, length, width, dtype=torch.bfloat16)
        key = torch.empty(batch, 8, length, width, dtype=torch.bfloat16)
        output, *sums = operator.flex_attention_fake_impl(query, key, key, None, (), 1.0, {})
    assert (output.shape, output.dtype) == (query.shape, query.dtype)
    assert [(number.shape, number.dtype) for number in sums] == [((batch, heads, length), torch.float32)] * 2
