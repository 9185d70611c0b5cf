"""Which attention kernel `scaled_dot_product_attention` picks on CUDA, and what it copies before it runs.

Source: torch's aten/src/ATen/native/transformers/cuda/sdp_utils.cpp and attention.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from qlora_planner.profiling.tracing.cuda.traits import CudaTraits

HALF = (torch.float16, torch.bfloat16)
aten = torch.ops.aten


def attention_backend(
    traits: CudaTraits, query: Any, key: Any, value: Any, mask: Any, dropout: float, enable_gqa: bool
) -> str:
    """The kernel that torch picks: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, select_sdp_backend."""
    half = query.dtype in (HALF if traits.bfloat16 else (torch.float16,))
    same_dtype = query.dtype == key.dtype == value.dtype
    width, value_width = query.shape[-1], value.shape[-1]
    heads, kv_heads = query.shape[1], key.shape[1]
    strided = all(tensor.stride(-1) == 1 or tensor.shape[-1] == 1 for tensor in (query, key, value))
    grouped = heads != kv_heads
    if query.dim() != 4 or not same_dtype or (grouped and not enable_gqa):
        return "math"  # heads that merely broadcast suit no fused kernel
    cudnn_limit = 256 if traits.capability in ((9, 0), (10, 0)) and traits.cudnn >= 91900 else 128
    cudnn_fits = width <= cudnn_limit and value_width <= cudnn_limit and width % 8 == 0 and value_width % 8 == 0
    if cudnn_limit == 256 and not (
        (width <= 128 and value_width <= 128) or (width, value_width) in ((192, 128), (256, 256))
    ):
        cudnn_fits = False  # check_cudnn_d256_bprop_head_dim
    mask_trains = mask is not None and mask.requires_grad
    preferred = traits.cudnn > 91500 and traits.capability[0] in (9, 10)
    if preferred and half and strided and cudnn_fits and key.shape[2] != 1 and not mask_trains:
        return "cudnn"
    if mask is None and half and strided and width == value_width <= 256 and traits.capability >= (8, 0):
        consumer = traits.capability in ((8, 6), (8, 9), (12, 0), (12, 1))
        if not (consumer and width > 192 and query.requires_grad and dropout > 0):
            return "flash"
    if not grouped and strided and traits.capability >= (5, 0):
        alignment = 8 if half else 4
        if traits.capability < (8, 0):
            alignment = 8 if half and traits.capability >= (7, 0) else 1
        if width % alignment == 0 and value_width % alignment == 0:
            return "efficient"
    return "math"


def _additive(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """convert_boolean_attn_mask: a boolean mask becomes an additive one in the query's dtype."""
    if mask.dtype is not torch.bool:
        return mask
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    low = torch.full((), -math.inf, dtype=query.dtype, device=query.device)
    return torch.where(mask, zero, low)


def _math_attention(
    query: Any, key: Any, value: Any, mask: Any, dropout: float, causal: bool, scale: float | None, gqa: bool
) -> Any:
    """_scaled_dot_product_attention_math as CUDA runs it; scores of every head are kept for backward."""
    origin = query.dtype
    if origin in HALF:
        query, key, value = query.float(), key.float(), value.float()
    factor = math.sqrt(scale if scale is not None else 1 / math.sqrt(query.shape[-1]))
    scaled = query * factor
    if causal:
        allowed = torch.ones((query.shape[-2], key.shape[-2]), dtype=torch.bool, device=query.device).tril()
        mask = _additive(allowed, scaled)
        del allowed
    if gqa and query.shape[1] != key.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
    scores = torch.matmul(scaled, key.transpose(-2, -1) * factor)
    if mask is not None:
        scores = scores.add_(mask)
    raw, scores = scores, functional.softmax(scores, -1)
    with torch.no_grad():  # _safe_softmax looks for rows without any allowed position
        empty = raw.eq(-math.inf)
        empty = empty.all(-1, keepdim=True)
        del empty
    del raw
    if dropout > 0:
        scores = functional.dropout(scores, dropout)
    return torch.matmul(scores, value).to(origin)


def attention_function(traits: CudaTraits) -> Callable[..., Any]:
    """A stand-in for torch.nn.functional.scaled_dot_product_attention that calls the operator CUDA would."""

    def scaled_dot_product_attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        if torch.is_autocast_enabled("cuda"):  # autocast's lower-precision list contains it
            wanted = torch.get_autocast_dtype("cuda")
            # Arguments of the C++ call are cast from the last to the first.
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.to(wanted)
            value, key, query = (x if x.dtype is torch.float64 else x.to(wanted) for x in (value, key, query))
        backend = attention_backend(traits, query, key, value, attn_mask, dropout_p, enable_gqa)
        if attn_mask is not None:
            attn_mask = _additive(attn_mask, query)
        trains = query.requires_grad or key.requires_grad or value.requires_grad
        # Compute log-sum-exp only where backward needs it; under no_grad none of them requires it.
        trains = trains and torch.is_grad_enabled()
        if backend == "cudnn":
            return aten._scaled_dot_product_cudnn_attention(
                query, key, value, attn_mask, trains, dropout_p, is_causal, False, scale=scale
            )[0]
        if backend == "flash":
            width = query.shape[-1]
            scale = scale if scale is not None else 1 / math.sqrt(width)
            short = -width % 8
            if short:  # pad_last_dim<8>
                query, key, value = (functional.pad(x, (0, short)) for x in (query, key, value))
            out = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
            return out[..., :width] if short else out
        if backend == "efficient":
            if attn_mask is not None:
                attn_mask = _aligned_mask(attn_mask, query, key)
            return aten._scaled_dot_product_efficient_attention(
                query, key, value, attn_mask, trains, dropout_p, is_causal, scale=scale
            )[0]
        return _math_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)

    return scaled_dot_product_attention


def _aligned_mask(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """preprocess_mask: memory-efficient attention wants rows padded to a multiple of 16 elements."""
    short = -mask.shape[-1] % 16
    if short:
        mask = functional.pad(mask, (0, short))[..., : mask.shape[-1]]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
