"""Closed forms of a Llama-like layer, worked out by hand from its operators, against the tape of a toy Llama.

Symbols: d hidden, q and kv the widths of queries and keys, H query heads, MLP its width between, r rank, P the layer's
adapter parameters. Forms are bytes per token of one layer. What CUDA adds to them is named here with its size:

* every fused attention kernel keeps the seed and the offset of its random numbers, 8 bytes each, whatever the length;
* in float32, grouped heads have no fused kernel: torch keeps the scores of every head (`MATH`);
* the plain loop leaves the model's key-value cache on, and its outputs hold it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("trl")

from qlora_planner.catalog import OPTIMIZERS  # noqa: E402
from qlora_planner.profiling.tracing import engine  # noqa: E402
from qlora_planner.spec.trace import Segment, Tape  # noqa: E402
from tests.tracing.specs import spec_of  # noqa: E402

# No two of these dimensions, nor small multiples of them, are equal: a term taken for another changes the sum.
d, H, KV, HEAD, MLP, r = 320, 4, 2, 48, 704, 8
q, kv = H * HEAD, KV * HEAD
S = 64
P = r * ((d + q) + 2 * (d + kv) + (q + d) + 2 * (d + MLP) + (MLP + d))
SEEDS = 16
BF16 = 12 * d + 4 * q + 4 * kv + 4 * H + 8 * MLP + 14 * r + 8
EQUAL_HEADS = 4 * (q - kv)  # keys and values as wide as queries, in 16 bits
# Scaled queries, scaled keys and values for every head, the output, and S scores: 16q + 4HS. A fused kernel would keep
# queries, keys, values and output, 8q + 8kv, and 4H of log-sums; the cache holds the keys and values here: 8kv as well.
MATH = 8 * q + 4 * H * S - 4 * H


@cache
def traced(model: tuple[tuple[str, Any], ...] = (), **options: Any) -> Tape:
    config = {
        "model_type": "llama", "hidden_size": d, "intermediate_size": MLP, "num_hidden_layers": 4,
        "num_attention_heads": H, "num_key_value_heads": KV, "head_dim": HEAD, "vocab_size": 1024,
        "max_position_embeddings": 8192, **dict(model),
    }  # fmt: skip
    usual: dict[str, Any] = {
        "rank": r, "seq_len": S, "lora_dropout": 0.0, "upcast": False, "gradient_checkpointing": False,
    }  # fmt: skip
    return engine.trace(config, spec_of(**{**usual, **options}))


def walk(tape: Tape) -> dict[tuple[str, str, int], tuple[int, int]]:
    """Live bytes at the highest moment and at the end of each segment of the first step."""
    alive: dict[int, int] = {}
    live = 0
    found: dict[Any, Any] = {}
    for segment in tape.segments:
        top = live
        for storage, size in tape.events[segment.start : segment.stop]:
            if size:
                alive[storage] = size
            live += size or -alive.pop(storage)
            top = max(top, live)
        if segment.step == 0:
            old = found.get((segment.stage, segment.name, segment.layer), (0, 0))[0]
            found[segment.stage, segment.name, segment.layer] = (max(top, old), live)
    return found


def kept_by_a_layer(tape: Tape) -> int:
    """What the forward pass of one inner layer adds to what is alive."""
    ends = walk(tape)
    return ends["forward", "layer", 2][1] - ends["forward", "layer", 1][1]


TRL = {"trainer": "trl-sft"}
KBIT = {"trainer": "hf-trainer", "upcast": True}
PLAIN = {"trainer": "hf-trainer"}
LOOP = {"trainer": "loop"}
EIGHT = (("num_key_value_heads", H),)
FORMS: dict[str, tuple[dict[str, Any], tuple[tuple[str, Any], ...], int, int]] = {
    "trl": (TRL, (), BF16, SEEDS),
    "trl with dropout": (
        {**TRL, "lora_dropout": 0.05}, (), 23 * d + 7 * q + 4 * kv + 4 * H + 9 * MLP + 14 * r + 8, SEEDS,
    ),
    "k-bit, autocast": (KBIT, (), 18 * d + 4 * q + 4 * kv + 4 * H + 14 * MLP + 14 * r + 8, 2 * P + SEEDS),
    "k-bit, autocast, dropout": (
        {**KBIT, "lora_dropout": 0.05}, (), 23 * d + 7 * q + 4 * kv + 4 * H + 15 * MLP + 14 * r + 8, 2 * P + SEEDS,
    ),
    "k-bit, no autocast, equal heads": (
        {**LOOP, "upcast": True}, EIGHT, 16 * d + 16 * q + 4 * H + 16 * MLP + 28 * r + 8, SEEDS,
    ),
    "k-bit, no autocast, grouped heads": (
        {**LOOP, "upcast": True}, (), 16 * d + 8 * q + 8 * kv + 4 * H + 16 * MLP + 28 * r + 8 + MATH, 0,
    ),
    "plain": (PLAIN, (), BF16, 2 * P + SEEDS),
    # Without autocast each linear keeps its own float32 copy of its input, instead of the shared one of 16 bits.
    "plain loop": (LOOP, EIGHT, 28 * d + 8 * q + 4 * q + 4 * H + 10 * MLP + 28 * r + 8, SEEDS),
    "q and v alone": (
        {**TRL, "target_modules": ("q_proj", "v_proj")}, (),
        10 * d + 4 * q + 4 * kv + 4 * H + 6 * MLP + 4 * r + 8, SEEDS,
    ),
    "query and key norms": (TRL, (("model_type", "qwen3"),), BF16 + 4 * (q + kv) + 4 * (H + KV), SEEDS),
    # Scores in float32 and in 16 bits, keys and values for every head, no log-sums and no random numbers.
    "eager": ({**TRL, "attention": "eager"}, (), BF16 + 6 * H * S + EQUAL_HEADS - 4 * H, 0),
    # The additive mask of S elements per row, and keys and values for every head.
    "padded": ({**TRL, "batch_size": 2, "padding": True}, (), BF16 + EQUAL_HEADS + 2 * S, SEEDS),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_layer_keeps_what_the_form_says(name: str) -> None:
    options, model, per_token, constant = FORMS[name]
    tokens = S * options.get("batch_size", 1)
    assert kept_by_a_layer(traced(model, **options)) == tokens * per_token + constant


def test_liger_keeps_16_bit_inputs_of_norms_and_no_activation() -> None:
    pytest.importorskip("liger_kernel.transformers")
    assert (
        kept_by_a_layer(traced(**TRL, liger=True))
        == S * (8 * d + 4 * q + 4 * kv + 4 * H + 6 * MLP + 14 * r + 8) + SEEDS
    )


@pytest.mark.parametrize(
    ("options", "per_token", "constant"),
    # Autocast keeps 16-bit copies of float32 adapters for as long as the forward pass lasts.
    [(TRL, 2 * d, 0), (KBIT, 4 * d, 2 * P), (PLAIN, 2 * d, 2 * P), ({**LOOP, "upcast": True}, 4 * d, 0)],
)
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_a_checkpoint_is_the_layers_input(
    options: dict[str, Any], per_token: int, constant: int, dropout: float
) -> None:
    tape = traced(**options, lora_dropout=dropout, gradient_checkpointing=True)
    assert kept_by_a_layer(tape) == S * per_token + constant


@cache
def head(vocabulary: int, width: int = d, **options: Any) -> tuple[int, int]:
    """Peaks of the head, forward and backward."""
    model = (("vocab_size", vocabulary), ("num_hidden_layers", 1), ("hidden_size", width))
    found = walk(traced(model, **{"seq_len": 512, "gradient_checkpointing": True, **options}))
    return found["forward", "head", -1][0], found["backward", "head", -1][0]


def per_word(width: int = d, **options: Any) -> tuple[int, int]:
    """Bytes of the head's peaks for each word of the vocabulary, beyond the tiles of any kernel."""
    small, large = head(40960, width, **options), head(49152, width, **options)
    return (large[0] - small[0]) // 8192, (large[1] - small[1]) // 8192


@pytest.mark.parametrize(
    ("options", "forward", "backward"),
    [
        (PLAIN, 10 * 512, 12 * 512),
        (KBIT, 10 * 512 + 2 * d, 12 * 512 + 2 * d),  # autocast's 16-bit copy of a float32 head is kept for backward
        (LOOP, 10 * 512, 14 * 512),  # the loop's outputs hold the logits through backward
        ({**LOOP, "upcast": True}, 8 * 512, 16 * 512),
    ],
)
def test_logits_cost_so_many_bytes_per_token_and_word(options: dict[str, Any], forward: int, backward: int) -> None:
    assert per_word(**options) == (forward, backward)


def test_logits_by_version_of_trl() -> None:
    assert [per_word(trl=version)[1] for version in ("1.3.0", "1.6.0")] == [12 * 512, 12 * 512]
    # 1.7 to 1.13: chunks of 256 tokens whatever the length. The head in float32 and in 16 bits, 6 bytes per weight,
    # lives beside one 16-bit chunk of logits; with a narrow head the chunk's gradients, 14 bytes, come out higher.
    assert per_word(trl="1.10.0", width=2560) == (6 * 2560 + 2 * 256, 6 * 2560 + 2 * 256)
    assert per_word(trl="1.10.0")[1] == 2 * d + 14 * 256
    assert per_word(trl="1.10.0") == per_word(trl="1.10.0", seq_len=1024)
    # 1.14: the head is not copied. 1.15 and later: nothing grows with the vocabulary.
    assert per_word(trl="1.14.0") == per_word(trl="1.14.0", width=2 * d) == (16 * 256, 16 * 256)
    assert per_word() == (0, 0)


def segment(tape: Tape, stage: str) -> Segment:
    return next(s for s in tape.segments if (s.stage, s.name, s.layer) == (stage, "layer", 1))


@pytest.mark.parametrize("double_quant", [True, False])
def test_a_4_bit_linear_dequantises_its_weight(double_quant: bool) -> None:
    """Long batches: 2n bytes for the weight; with double quantisation 4n/64 for each of two lists of constants."""
    tape = traced(seq_len=2048, gradient_checkpointing=True, double_quant=double_quant)
    weight, constants = 2 * d * MLP, 4 * d * MLP // 64
    for stage, beside in (("forward", [2, 2, 2]), ("backward", [2, 2, 2, 1, 1, 1])):
        alive: dict[int, int] = {}
        found = []
        where = segment(tape, stage)
        for storage, size in tape.events[where.start : where.stop]:
            if size == weight:
                found.append(list(alive.values()).count(constants))
            alive[storage] = size
        # Recomputing comes first in backward; there the second list of constants is gone when the weight is born.
        assert found == (beside if double_quant else [0] * len(beside))


MIB = 1 << 20


@pytest.mark.parametrize(
    ("half", "kv_heads", "kept", "forward", "backward"),
    [(False, 8, 640, 1296, 2176), (False, 32, 32, 32, 193), (True, 8, 16, 16, 120)],
)
def test_attention_as_measured_on_an_h200(half: bool, kv_heads: int, kept: int, forward: int, backward: int) -> None:
    """32 heads of 128 over 2,048 tokens, in MiB; the gradient comes from a sum."""
    with engine.recording(spec_of()) as recorder:
        dtype = torch.bfloat16 if half else torch.float32
        heads = (32, kv_heads, kv_heads)
        inputs = [torch.empty(1, n, 2048, 128, dtype=dtype, device="cuda", requires_grad=True) for n in heads]
        recorder.events.clear()
        out = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=kv_heads != 32)
        middle = len(recorder.events)
        # A fused backward kernel copies the sum's expanded gradient to a whole one, which matrix products do not need.
        fused = half or kv_heads == 32
        total = out.backward if fused else out.sum().backward
        recorder.in_backward = True
        total(*([torch.empty_like(out)] if fused else []))
        recorder.freeze()
        sizes = [0 if "workspace" in event.op else event.size for event in recorder.events]
    live, tops = 0, [0, 0]
    for index, size in enumerate(sizes):
        live += size
        tops[index >= middle] = max(tops[index >= middle], live)
    figures = (sum(sizes[:middle]), *tops)
    assert [round(figure / MIB) for figure in figures[:2]] == [kept, forward]
    assert figures[2] / MIB == pytest.approx(backward, abs=0.6)


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "bytes_per_parameter"),
    [
        ("adamw_torch", "bfloat16", (16, 4096), 4),
        ("adamw_torch", "float32", (16, 4096), 8),
        ("adamw_8bit", "bfloat16", (16, 4096), 2.03125),
        ("adamw_8bit", "bfloat16", (8, 511), 8),  # below 4,096 elements states stay in 32 bits
        ("paged_adamw_32bit", "bfloat16", (16, 4096), 8),
        ("lion_8bit", "bfloat16", (16, 4096), 1.015625),
        ("adafactor", "float32", (16, 4096), (4 * (16 + 4096) + 4) / (16 * 4096)),  # and one scalar
    ],
)
def test_states_per_parameter(name: str, dtype: str, shape: tuple[int, int], bytes_per_parameter: float) -> None:
    states = OPTIMIZERS[name].states(shape, dtype)
    assert sum(state.size_bytes for state in states) / (shape[0] * shape[1]) == bytes_per_parameter
