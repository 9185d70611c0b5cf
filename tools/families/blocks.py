"""Classes that take rows in blocks of so many tokens, the last one filled up: what rounds a length, and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from qlora_planner.spec.family import FILLED_KEYS, FILLED_QUERIES, FILLED_SUMS, FLASH_ROWS, SCANNED
from tools.families.fitting import Sum
from tools.families.regions import Region
from tools.families.scans import DELTA_CHUNK, delta_chunk

_CHUNK_FIELDS = ("chunk_size", "mamba_chunk_size")
_SCANS = frozenset({"mamba", "linear_attention"})
_WIDEST_FUSED = 256  # of flash_attn and cuDNN
# kernel_backward.h, kBlockSizeI and kBlockSizeJ; kernel_forward.h, kAlignLSE.
_EFFICIENT = {FILLED_QUERIES: 64, FILLED_KEYS: 128, FILLED_SUMS: 32}


def chunk_of(config: Mapping[str, Any]) -> int | None:
    """How many tokens the state spaces of a completed config scan at a time; None where it has none that do."""
    kinds = config.get("layer_types") or config.get("layers_block_type") or ()
    sizes = (config.get(name) for name in _CHUNK_FIELDS) if _SCANS & set(kinds) else ()
    return next((size for size in sizes if type(size) is int), delta_chunk(config))


def blocks_of(config: Mapping[str, Any]) -> dict[str, int]:
    """How many tokens a class takes at a time, by the letter of the length: those of a scan, and of efficient attention
    on heads that no other kernel takes."""
    scanned = chunk_of(config)
    return {
        **({} if scanned is None else {SCANNED: scanned}),
        **({} if _wide_head(config) is None else _EFFICIENT),
    }


def begun_by_blocks(config: Mapping[str, Any]) -> list[Sum]:
    """The first terms of sums of three: efficient attention's backward takes 256 bytes a head, and accumulators in
    float32 of queries and of keys as wide as the heads."""
    width, heads = _wide_head(config), "num_attention_heads"
    if width is None:
        return []
    of_queries = (Fraction(4 * width), (1, 0, 0), (FILLED_QUERIES, heads))
    return [((Fraction(256), (1, 0, 0), (heads,)), of_queries)]


def begun_sums(sequences_per_row: int = 1, flash: Sequence[str] = ()) -> list[Sum]:
    """The first terms of sums of three: cuDNN's attention backward takes a workspace of 256 bytes, a sum in float32
    for each row of each head, and accumulators as wide as the heads.

    FlashAttention-2's takes the last two for every token and 128 more a row (flash_attn 2.8, flash_api.cpp,
    mha_varlen_bwd), of which a task's padding, a share of one completion, goes off.
    """
    of_heads = (Fraction(4 * sequences_per_row), (1, 1, 0), ("num_attention_heads",))
    begun: list[Sum] = [((Fraction(256), (0, 0, 0), ()), of_heads)]
    for wide in ((), flash) if flash else ():
        each = Fraction(4 * sequences_per_row)
        product = ("num_attention_heads", *wide)
        begun.append(((each, (1, 1, 0), product), (FLASH_ROWS * each, (1, 0, 0), product)))
    return begun


def settled(region: Region, config: Mapping[str, Any]) -> Region:
    """The region, with rows that leave a block in part empty where its name does not say otherwise."""
    if delta_chunk(config) is not None:
        region = replace(region, chunk=DELTA_CHUNK)
    return replace(region, whole=False) if region.whole is None and blocks_of(config) else region


def _wide_head(config: Mapping[str, Any]) -> int | None:
    widths = (value for name, value in config.items() if name.endswith("head_dim") and type(value) is int)
    return next((width for width in widths if width > _WIDEST_FUSED), None)
