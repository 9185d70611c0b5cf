"""FlashAttention-2's two training functions, with its allocations and without its kernels.

The package has no build without CUDA. What its functions allocate is in its flash_api.cpp (mha_fwd, mha_varlen_fwd,
mha_bwd, mha_varlen_bwd) and flash_attn_interface.py: forward keeps q, k, v, out, the log-sum-exp of each query head in
fp32 and the random generator's state; backward takes a row sum and an accumulator of dq in fp32, over lengths rounded
to 128 and widths to 32, and, for grouped heads, dk and dv per query head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn import functional

from qlora_planner.profiling.tracing.spec import TraceSpec

_WIDTH_UNIT = 8  # heads are padded to a multiple of it
_ROWS, _WIDTH = 128, 32  # what backward rounds lengths and widths to
_FP32 = torch.float32


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


class _Attention(torch.autograd.Function):
    """q [.., heads, width], k and v [.., kv heads, width], with [batch, length] or [tokens] in front."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, sequences: int, *lengths: Any) -> Any:
        width = query.shape[-1]
        if short := -width % _WIDTH_UNIT:
            query, key, value = (functional.pad(x, (0, short)) for x in (query, key, value))
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        heads = query.shape[-2]
        out = torch.empty_like(query)
        rows = (query.shape[0], heads, query.shape[1]) if query.dim() == 4 else (heads, query.shape[0])
        sums = torch.empty(rows, dtype=_FP32, device=query.device)
        state = torch.empty(2, dtype=torch.int64, device=query.device)
        ctx.save_for_backward(query, key, value, out, sums, state, *lengths)
        ctx.width, ctx.sequences = width, sequences
        return out[..., :width] if short else out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, *rest = ctx.saved_tensors
        (grad,) = grads
        if short := -ctx.width % _WIDTH_UNIT:
            grad = functional.pad(grad, (0, short))
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        dq, dk, dv = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        heads, width = query.shape[-2:]
        if query.dim() == 4:
            batch, rows = query.shape[0], _rounded(query.shape[1], _ROWS)
        else:  # each sequence starts at a multiple of 128 rows
            batch, rows = 1, query.shape[0] + _ROWS * ctx.sequences
        row_sums = torch.empty((batch, heads, rows), dtype=_FP32, device=query.device)
        accumulator = torch.empty((batch, rows, heads, _rounded(width, _WIDTH)), dtype=_FP32, device=query.device)
        if key.shape[-2] != heads:
            wide = (*key.shape[:-2], heads, width)
            expanded = [torch.empty(wide, dtype=key.dtype, device=key.device) for _ in range(2)]
            del expanded
        del row_sums, accumulator
        if short:
            dq, dk, dv = (x[..., : ctx.width] for x in (dq, dk, dv))
        return (dq, dk, dv, None, *([None] * (len(rest) - 3)))


def flash_attn_func(
    q: Any, k: Any, v: Any, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None,
    deterministic: bool = False, return_attn_probs: bool = False,
) -> Any:  # fmt: skip
    """Rows of equal length: q [batch, length, heads, width]."""
    return _Attention.apply(q, k, v, q.shape[0])


def flash_attn_varlen_func(
    q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: Any, max_seqlen_k: Any,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None,
    deterministic: bool = False, return_attn_probs: bool = False, block_table: Any = None,
) -> Any:  # fmt: skip
    """Sequences end to end: q [tokens, heads, width], `cu_seqlens_q` [sequences + 1]."""
    return _Attention.apply(q, k, v, cu_seqlens_q.shape[0] - 1, cu_seqlens_q, cu_seqlens_k)


def _supported(self: Any, flash_attn_version: int, is_init_check: bool = False) -> bool:
    """transformers' check of the class, without its look for the installed package."""
    if not self._supports_flash_attn:
        raise ValueError(f"{type(self).__name__} does not support Flash Attention {flash_attn_version} yet")
    return True


@contextlib.contextmanager
def flash_attention_2(spec: TraceSpec) -> Iterator[None]:
    """Within this context transformers finds FlashAttention-2, if the run asks for it."""
    if spec.run.attention != "flash_attention_2":
        yield
        return
    import transformers.modeling_flash_attention_utils as utils
    from transformers import PreTrainedModel

    functions = (flash_attn_func, flash_attn_varlen_func, None, utils._pad_input, utils._unpad_input)
    cached = ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn", "_pad_fn",
              "_unpad_fn", "_process_flash_kwargs_fn")  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name in cached:
            stack.enter_context(mock.patch.object(utils, name, None))
        stack.enter_context(mock.patch.object(utils, "_lazy_imports", lambda *_args, **_kwargs: functions))
        stack.enter_context(mock.patch.object(PreTrainedModel, "_flash_attn_can_dispatch", _supported))
        yield
