"""What bitsandbytes stores for one quantised weight matrix."""

from __future__ import annotations

from qlora_planner.record import record


@record
class QuantScheme:
    """One way of storing linear weights.

    `weight_bits` per element; `block` elements share one constant; a second level shares `nested_block` of those.
    """

    name: str
    weight_bits: int
    block: int | None = None
    nested_block: int | None = None
    code_entries: int = 0  # fp32 code table, one copy per module
    nested_code_entries: int = 0
    row_statistics: bool = False  # int8: one fp32 scale per output row


# bitsandbytes 0.50.2: functional.py quantize_4bit (block 64, 16-entry code, second level of 256 with a 256-entry
# code and one offset) and nn/modules.py Int8Params (CB and SCB).
SCHEMES: dict[str, QuantScheme] = {
    "nf4": QuantScheme(name="nf4", weight_bits=4, block=64, nested_block=256, code_entries=16, nested_code_entries=256),
    "fp4": QuantScheme(name="fp4", weight_bits=4, block=64, nested_block=256, code_entries=16, nested_code_entries=256),
    "int8": QuantScheme(name="int8", weight_bits=8, row_statistics=True),
}

_FP32 = 4


def quantized_tensor_bytes(
    scheme: QuantScheme, out_features: int, in_features: int, double_quant: bool
) -> tuple[int, tuple[int, ...]]:
    """Bytes of the packed weight, and of each constant tensor beside it, for one matrix.

    Every entry is an allocation of its own: the allocator rounds each one up.
    """
    elements = out_features * in_features
    packed = -(-elements * scheme.weight_bits // 8)
    if scheme.row_statistics:
        return packed, (_FP32 * out_features,)
    assert scheme.block is not None
    blocks = -(-elements // scheme.block)
    if not double_quant:
        return packed, (_FP32 * blocks, _FP32 * scheme.code_entries)
    assert scheme.nested_block is not None
    outer = -(-blocks // scheme.nested_block)
    return packed, (
        blocks,  # 8-bit constants
        _FP32 * scheme.code_entries,
        _FP32 * outer,
        _FP32 * scheme.nested_code_entries,
        _FP32,  # the offset, a scalar
    )
