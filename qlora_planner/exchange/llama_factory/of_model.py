"""What LLaMA-Factory's switches do whose bytes hang on the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

from qlora_planner.exchange.parsed_config import Reading
from qlora_planner.exchange.several_cards.sharing import Beyond
from qlora_planner.memory.records import Unmodelled
from qlora_planner.memory.weights.targets import targeted
from qlora_planner.spec.model import ModelProfile

# Of an adapter's parameter: weight, gradient and two states in four bytes for two, and the copy that autocast keeps.
_ADAPTER_BYTES = 4 * 2 + 2


def of_model(reading: Reading, profile: ModelProfile) -> Reading:
    """The reading with LLaMA-Factory's own choice of attention for this model, and the sizes of what it asks for."""
    reading = _attention(reading, profile)
    return replace(reading, beyond=(*reading.beyond, *_asked(reading, profile)))


def _attention(reading: Reading, profile: ModelProfile) -> Reading:
    """model_utils/attention.py: gemma 2's `auto` is FlashAttention-2 where it is installed, else eager; gpt-oss gets
    FlashAttention-3 from the Hub whatever is said."""
    run = reading.run
    if profile.model_type == "gemma2" and run.attention is None:
        left = Unmodelled(key="flash_attn: auto", what="FlashAttention-2 if flash-attn is installed", direction="down")
        return replace(reading, run=run.with_(attention="eager"), unmodelled=(*reading.unmodelled, left))
    if profile.model_type == "gpt_oss":
        what = "gpt-oss gets FlashAttention-3 from the Hub, which makes no scores of all pairs; these figures have them"
        left = Unmodelled(key="flash_attn", what=what, direction="down")
        return replace(reading, run=run.with_(attention=None), unmodelled=(*reading.unmodelled, left))
    return reading


def _asked(reading: Reading, profile: ModelProfile) -> Iterator[Beyond]:
    run = reading.run
    if "pure_bf16" in reading.asks:
        yield Beyond(
            key="pure_bf16: true", what="adapters stay in bfloat16; modelled in float32", direction="down",
            at_most_bytes=_of_float32_adapters(reading, profile),
        )  # fmt: skip
    vocabulary = int(profile.dims.get("vocab_size") or 0)
    if "upcast_lmhead_output" in reading.asks and not run.liger:
        yield Beyond(
            key="upcast_lmhead_output: true", what="logits are float32 from the head on, without a copy in 16 bits",
            direction="down", at_most_bytes=2 * run.tokens * vocabulary,
        )  # fmt: skip


def _of_float32_adapters(reading: Reading, profile: ModelProfile) -> int:
    """What adapters in float32 take at the most beside those in bfloat16.

    PEFT casts an adapter's input to its dtype (tuners_utils.py, _cast_input_dtype): autocast keeps a copy in 16 bits of
    each where the input itself would do, and one input at a time is float32 on its way, with its gradient.
    """
    run = reading.run
    adapters = targeted(profile, run)
    parameters = sum(prod(tensor.shape(run.rank)) * tensor.count for tensor in adapters)
    inputs: dict[str | None, list[int]] = {}
    for tensor in adapters:
        if tensor.name == "lora_A":
            inputs.setdefault(tensor.layer_kind, []).append(tensor.shape(run.rank)[-1])
    kept = max((sum(widths) for widths in inputs.values()), default=0)
    widest = max((width for widths in inputs.values() for width in widths), default=0)
    layers = 1 if run.gradient_checkpointing else sum(count for _, count in profile.layer_order)
    return _ADAPTER_BYTES * parameters + run.tokens * (2 * kept * layers + 8 * widest)
