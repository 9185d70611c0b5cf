"""Scratch memory inside CUDA kernels, and kernels that allocate in another order or form than their fake versions.

Sizes were read from torch's sources (files named at each) and each agrees with an allocator history recorded on an
H200 under torch 2.11; none is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

_HALF = (torch.float16, torch.bfloat16)
aten = torch.ops.aten


def _numel(*shape: int) -> int:
    return math.prod(shape)


def _cudnn_backward(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> list[int]:
    """Workspace of cuDNN's attention backward: dQ in fp32, dK and dV per query head, a row sum, 256 bytes."""
    query, key, value = args[1], args[2], args[3]
    batch, heads, length, width = query.shape
    size = 4 * _numel(batch, heads, length, width) + 4 * _numel(batch, heads, length) + 256
    if key.shape[1] != heads:
        item = key.element_size()
        size += item * batch * heads * key.shape[2] * (key.shape[3] + value.shape[3])
    return [size]


def _cudnn_forward(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> list[int]:
    return [256]


def _flash_backward(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> list[int]:
    """flash_attn mha_bwd: softmax_d and dq_accum in fp32 over lengths rounded to 128, expanded dK and dV."""
    query, key = args[1], args[2]
    batch, heads, length, width = query.shape
    rows = -(-length // 128) * 128
    padded = -(-width // 32) * 32
    sizes = [4 * batch * heads * rows, 4 * batch * rows * heads * padded]
    if key.shape[1] != heads:
        item = key.element_size()
        sizes += [item * batch * key.shape[2] * heads * width] * 2
    return sizes


def _varlen_backward(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> list[int]:
    """flash_attn mha_varlen_bwd over rows end to end, each of which begins at a multiple of 128 of its own."""
    query, key, bounds = args[1], args[2], args[6]
    if bounds is None:
        return _flash_backward((args[0], query.transpose(1, 2), key.transpose(1, 2)), kwargs, result)
    total, heads, width = query.shape
    rows = total + 128 * (bounds.shape[0] - 1)
    padded = -(-width // 32) * 32
    sizes = [4 * heads * rows, 4 * rows * heads * padded]
    if key.shape[1] != heads:
        sizes += [key.element_size() * key.shape[0] * heads * width] * 2
    return sizes


def _efficient_backward(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> list[int]:
    """kernel_backward.h: fp32 product for the row sums before it, then dQ (and wide dK, dV) accumulators in fp32."""
    query, key = args[1], args[2]
    batch, heads, length, width = query.shape
    rows = -(-length // 64) * 64
    width_aligned = -(-width // 64) * 64
    accumulators = 4 * batch * heads * rows * width_aligned + 256 * batch * heads
    if width > 128 and query.dtype in _HALF:
        accumulators += 2 * 4 * batch * heads * (-(-key.shape[2] // 128) * 128) * width_aligned
    product = 4 * query.numel()
    delta = 4 * batch * heads * length
    return [max(product + delta, accumulators), delta]


def _softmax_backward(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> list[int]:
    """SoftMax.cu, softmax_backward_cuda_out: `Tensor tmp = grad * output`, in the wider of the two dtypes."""
    grad, output = args[0], args[1]
    return [grad.numel() * torch.promote_types(grad.dtype, output.dtype).itemsize]


def _norm_of_list(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> list[int]:
    """ForeachReduceOp.cu: one partial result per chunk of 65,536 elements of the largest tensor."""
    tensors = args[0]
    chunks = max((-(-tensor.numel() // 65536) for tensor in tensors), default=0)
    return [4 * chunks * len(tensors)]


def _grouped(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> list[int]:
    """GroupMM.cu: problem descriptions (60 bytes a group) and CUTLASS's workspace (512 bytes a multiprocessor)."""
    groups = args[2].numel() if len(args) > 2 and args[2] is not None else args[0].shape[0]
    return [60 * groups, 67584]


def grouped_mm(a: Any, b: Any, offs: Any = None, bias: Any = None, out_dtype: Any = None) -> Any:
    """_grouped_mm in other types than bf16: group by group into one output (GroupedBlas.cpp, _grouped_mm_fallback)."""
    dtype = out_dtype or a.dtype
    if a.dim() == 2 and b.dim() == 2:
        shape: tuple[int, ...] = (offs.numel(), a.shape[0], b.shape[1])
    elif a.dim() == 2:
        shape = (a.shape[0], b.shape[-1])
    elif b.dim() == 2:
        shape = (a.shape[1], b.shape[1])
    else:
        shape = (a.shape[0], a.shape[1], b.shape[-1])
    unit = 16 // dtype.itemsize  # rows start at multiples of 16 bytes
    padded = -(-shape[-1] // unit) * unit
    return torch.empty((*shape[:-1], padded), dtype=dtype, device=a.device)[..., : shape[-1]]


SCRATCH: dict[Any, Callable[[Sequence[Any], Mapping[str, Any], Any], Sequence[int]]] = {
    aten._scaled_dot_product_cudnn_attention.default: _cudnn_forward,
    aten._scaled_dot_product_cudnn_attention_backward.default: _cudnn_backward,
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    aten._flash_attention_backward.default: _varlen_backward,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    aten._softmax_backward_data.default: _softmax_backward,
    aten._foreach_norm.Scalar: _norm_of_list,
    aten._grouped_mm.default: _grouped,
}


def copied_input(func: Any, args: Sequence[Any]) -> int:
    """Convolution.cpp, _convolution and convolution_backward: a one-dimensional one copies an input with permuted
    dimensions before anything else, and holds the copy until it is done."""
    argument = _CONVOLVED.get(func)
    if argument is None or args[argument].dim() != 3 or args[argument].is_contiguous():
        return 0
    return int(args[argument].numel() * args[argument].element_size())


_CONVOLVED = {aten.convolution.default: 0, aten.convolution_backward.default: 1}


# Kernels that allocate their last result first (Dropout.cu: the mask, then the output).
LATE_RESULTS = frozenset({aten.native_dropout.default})

# Derivative formulas update a fresh tensor in place, except for tensor subclasses such as fake tensors.
ENGINE_IN_PLACE: dict[Any, Any] = {
    aten.index_put.default: aten.index_put_.default,
    aten.scatter_add.default: aten.scatter_add_.default,
    aten.index_add.default: aten.index_add_.default,
    aten.scatter.src: aten.scatter_.src,
    aten.scatter.value: aten.scatter_.value,
    aten.index_copy.default: aten.index_copy_.default,
}
