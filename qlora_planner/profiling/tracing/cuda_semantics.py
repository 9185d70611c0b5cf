"""What a CUDA device does that fake tensors do not show. Every departure from the fake run is in this module.

* attention: which kernel `scaled_dot_product_attention` picks, what it copies, saves and borrows while it runs;
* bitsandbytes: its CUDA operators as its own source runs them (backends/cuda/ops.py), in fake tensors;
* scratch memory inside kernels; * library workspaces that stay allocated.

Sizes were read from torch's sources (files named at each) and each agrees with an allocator history recorded on an
H200 under torch 2.11; none is fitted.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

MIB = 1 << 20
_HALF = (torch.float16, torch.bfloat16)
aten = torch.ops.aten


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaTraits:
    """The facts of a device and its libraries that decide which kernels run."""

    capability: tuple[int, int] = (9, 0)
    multiprocessors: int = 132
    cudnn: int = 91900  # torch 2.11+cu130's; cuDNN attention is preferred above 91500

    @property
    def cublas_workspace(self) -> int:
        """Bytes per thread's cuBLAS handle: CublasHandlePool.cpp, parseChosenWorkspaceSize."""
        if self.capability[0] in (9, 10, 12):
            return 32 * MIB
        return (4096 * 2 + 16 * 8) * 1024

    @property
    def cublaslt_workspace(self) -> int:
        """Bytes of the buffer for fused bias kernels: `_parseCUDABlasLtWorkspaceSize`, 1 MiB by default."""
        return MIB

    @property
    def bfloat16(self) -> bool:
        """Whether the tensor cores have bf16."""
        return self.capability >= (8, 0)


# --------------------------------------------------------------------------------------------------- attention kernels
def attention_backend(
    traits: CudaTraits, query: Any, key: Any, value: Any, mask: Any, dropout: float, enable_gqa: bool
) -> str:
    """The kernel that torch picks: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, select_sdp_backend."""
    half = query.dtype in (_HALF if traits.bfloat16 else (torch.float16,))
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
    if origin in _HALF:
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
            found = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
            return found[..., :width] if short else found
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


# ---------------------------------------------------------------------------------------------- scratch inside kernels
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
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    aten._softmax_backward_data.default: _softmax_backward,
    aten._foreach_norm.Scalar: _norm_of_list,
    aten._grouped_mm.default: _grouped,
}


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


# ------------------------------------------------------------------------------------------------ bitsandbytes on CUDA
@cache
def _bitsandbytes_rule() -> tuple[Callable[..., bool] | None, int]:
    """bitsandbytes' own choice between its fused 4-bit kernel and dequantising, out of its installed source.

    The module itself cannot be imported without CUDA. Versions before 0.50 have no fused training kernel.
    """
    spec = util.find_spec("bitsandbytes")
    if spec is None or spec.origin is None:
        return None, 0
    path = Path(spec.origin).parent / "backends" / "cuda" / "ops.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wanted = "_gemm_4bit_use_custom_cuda"
    rule = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == wanted), None)
    if rule is None:
        return None, 0
    rule.decorator_list = []
    floor = next(
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_GEMM_4BIT_CUSTOM_FLOOR_M"
    )
    space: dict[str, Any] = {"torch": torch, "_gpu_dispatch_props": lambda props: props}
    exec(compile(ast.Module(body=[floor, rule], type_ignores=[]), str(path), "exec"), space)
    limit = next(
        (
            ast.literal_eval(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_gemm_4bit_custom_max_m"
        ),
        0,
    )
    return space[wanted], limit


def bitsandbytes_replacements(traits: CudaTraits) -> dict[Any, Callable[..., Any]]:
    """bitsandbytes' operators as their CUDA versions allocate."""
    import bitsandbytes  # noqa: F401  (registers the operators)

    ops = torch.ops.bitsandbytes

    def gemm_4bit(
        a: Any,
        packed: Any,
        shape: Any,
        absmax: Any,
        blocksize: int,
        quant_type: str,
        bias: Any = None,
        absmax_8bit: Any = None,
        absmax_code: Any = None,
        absmax_offset: Any = None,
    ) -> Any:
        rule, limit = _bitsandbytes_rule()
        inner, outer = a.shape[-1], shape[0]
        tokens = a.numel() // inner
        fused = rule is not None and tokens <= limit and inner % blocksize == 0
        props = (traits.multiprocessors, *traits.capability)
        if fused and rule is not None and rule(props, a.dtype, tokens, outer, inner):
            return torch.empty((*a.shape[:-1], outer), dtype=a.dtype, device=a.device)
        held, first_level = None, None
        if absmax_8bit is not None:
            first_level = torch.empty_like(absmax_8bit, dtype=torch.float32)
            held = (first_level, first_level + absmax_offset)  # both live as long as the function runs
        weight = torch.empty(tuple(shape), dtype=a.dtype, device=a.device)
        result = functional.linear(a, weight, bias)
        del held, first_level
        return result

    def int8_vectorwise_quant(a: Any, threshold: float = 0.0) -> Any:
        rows = a.numel() // a.shape[-1]
        stats = torch.empty(rows, device=a.device, dtype=torch.float32)
        quantised = torch.empty(tuple(a.shape), device=a.device, dtype=torch.int8)
        outliers = None
        if threshold > 0:
            large = a.abs() >= threshold
            large.any()
            outliers = torch.empty(0, device=a.device, dtype=torch.int64)
        return quantised, stats, outliers

    def int8_scaled_mm(
        a: Any, b: Any, row_stats: Any, col_stats: Any, bias: Any = None, dtype: torch.dtype | None = None
    ) -> Any:
        product = torch.empty((*a.shape[:-1], b.shape[0]), dtype=torch.int32, device=a.device)
        out = torch.empty_like(product, dtype=torch.float16)
        if bias is not None and bias.dtype is not torch.float16:
            out.add_(bias)
        return out.to(dtype or torch.float16)

    def int8_mixed_scaled_mm(
        a: Any, ca: Any, cb: Any, sca: Any, scb: Any, outlier_cols: Any = None, bias: Any = None
    ) -> Any:
        empty = torch.empty(0, device=a.device, dtype=a.dtype)
        return int8_scaled_mm(ca, cb, sca, scb, bias, a.dtype), empty

    table: dict[Any, Callable[..., Any]] = {}
    for name, function in (
        ("gemm_4bit", gemm_4bit),
        ("int8_vectorwise_quant", int8_vectorwise_quant),
        ("int8_scaled_mm", int8_scaled_mm),
        ("int8_mixed_scaled_mm", int8_mixed_scaled_mm),
    ):
        if hasattr(ops, name):
            table[getattr(ops, name).default] = function
    return table
