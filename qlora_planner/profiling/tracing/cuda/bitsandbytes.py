"""bitsandbytes' CUDA operators as its own source runs them (backends/cuda/ops.py), in fake tensors."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from qlora_planner.profiling.tracing.cuda.traits import CudaTraits
from qlora_planner.profiling.tracing.refused import CudaRefusalError


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
        if a.dim() not in (2, 3):  # _int8_linear_matmul_impl
            raise CudaRefusalError("Only two or three dimensional matrices are supported for argument A")
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
