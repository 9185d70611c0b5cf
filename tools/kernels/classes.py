"""Which kind of kernel an operator is, and what it multiplies and moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

# A product whose sides are all as wide hides what it moves of activations behind what it multiplies.
WIDE = 512

_KINDS = {
    "dequantise": ("dequantize_4bit", "dequantize_blockwise", "int8_vectorwise_dequant"),
    "copy": (
        "_to_copy", "clone", "copy_", "cat", "stack", "slice_backward", "select_backward", "constant_pad_nd", "roll",
        "flip", "repeat",
    ),
    "gather": (
        "embedding", "index", "index_select", "gather", "embedding_dense_backward", "index_put_", "_index_put_impl_",
        "_unsafe_index_put", "index_put", "index_add", "index_add_", "scatter", "scatter_", "scatter_add",
        "scatter_add_", "index_copy_", "masked_scatter", "masked_scatter_backward", "sort", "topk", "nonzero",
    ),
    "reduction": (
        "sum", "mean", "amax", "max", "min", "any", "all", "cumsum", "_softmax", "_softmax_backward_data",
        "_log_softmax", "_log_softmax_backward_data", "native_layer_norm", "native_layer_norm_backward",
        "_fused_rms_norm", "_fused_rms_norm_backward", "nll_loss_forward", "nll_loss_backward", "linalg_vector_norm",
        "var_mean", "logsumexp",
    ),
    "fill": (
        "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zero_",
        "fill_", "arange", "scalar_tensor", "tril", "triu",
    ),
}  # fmt: skip
KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
KINDS = ("dequantise", "product", "attention", "elementwise", "reduction", "copy", "gather", "fill", "triton")
# What allocates without a kernel.
EMPTY = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "set_", "resize_"})
# Written without being read first.
_FILLS = frozenset(_KINDS["fill"])
# Reads as much as it writes, whatever it picks from.
_PICKS = frozenset({"embedding", "index", "index_select", "gather"})
# Adds or puts its last tensor into a larger one.
_PUTS = frozenset({
    "index_put_", "_index_put_impl_", "index_add_", "scatter_", "scatter_add_", "index_copy_",
})  # fmt: skip
# A fill of the whole, then a copy of a part.
_PADS = frozenset({"slice_backward", "select_backward", "constant_pad_nd"})

_PRODUCTS = {
    "mm": (0, 1), "bmm": (0, 1), "matmul": (0, 1), "linear": (0, 1), "_grouped_mm": (0, 1), "addmm": (1, 2),
    "baddbmm": (1, 2), "mv": (0, 1), "addmv": (1, 2),
}  # fmt: skip
# Products with a summand.
_ADDED = frozenset({"addmm", "baddbmm", "addmv"})


@dataclass(slots=True)
class Tally:
    """Kernels of one kind: launches from Python and from C++ alone, bytes, and operations by the unit that runs them
    (multiply-adds twice)."""

    launches: float = 0.0
    engine_launches: float = 0.0
    read: int = 0
    written: int = 0
    flops: dict[str, float] = field(default_factory=dict)

    def add(self, other: Kernel, kernels: int, engine: int) -> None:
        """One more operator of `kernels` kernels, `engine` of them launched by C++ alone."""
        self.launches += kernels - engine
        self.engine_launches += engine
        self.read += other.read
        self.written += other.written
        if other.flops:
            self.flops[other.unit] = self.flops.get(other.unit, 0.0) + other.flops


@dataclass(slots=True)
class Kernel:
    """One operator: its kind, how many kernels it is, bytes, operations and the unit that runs them."""

    kind: str
    kernels: int = 1
    read: int = 0
    written: int = 0
    flops: float = 0.0
    unit: str = "half"


def bytes_of(tensor: Any) -> int:
    """Bytes that a kernel reads of a tensor: each place of its storage once."""
    return int(min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()))


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor of an operator's arguments or result."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from tensors_in(inner)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors_in(inner)


def unit_of(dtype: torch.dtype) -> str:
    """Which units multiply."""
    return "int8" if dtype is torch.int8 else "half" if dtype in (torch.float16, torch.bfloat16) else "float"


def product(a: Any, b: Any, result: Any, inner: int, weights: Sequence[Any]) -> Kernel:
    """A matrix product `inner` deep. A wide one moves its weights alone, or a weight's gradient."""
    flops = 2.0 * result.numel() * inner
    read, written = bytes_of(a) + bytes_of(b), bytes_of(result)
    if min(inner, *a.shape[-2:], *b.shape[-2:]) >= WIDE:
        read = sum(map(bytes_of, weights))
        written = 0 if weights else written
    return Kernel(kind="product", read=read, written=written, flops=flops, unit=unit_of(a.dtype))


def kernel_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, is_weight: Any) -> Kernel:
    """What an operator does that runs as its name says; `is_weight` says of a tensor whether it is a weight."""
    name = name_of(func)
    inputs = {one.untyped_storage()._cdata: one for one in tensors_in((args, kwargs))}
    outputs = list(tensors_in(result))
    written = sum(map(bytes_of, outputs))
    if name in _PRODUCTS:
        first, second = (args[index] for index in _PRODUCTS[name])
        inner = int(first.shape[-1])
        weights = [one for one in (first, second) if is_weight(one)]
        out = outputs[0] if outputs else kwargs["out"]
        added = bytes_of(args[0]) if name in _ADDED else 0
        if name == "_grouped_mm" and out.dim() == 3:  # the gradient of a stack: rows are grouped along the inner side
            return Kernel(kind="product", written=bytes_of(out), unit=unit_of(first.dtype),
                          flops=2.0 * inner * out.shape[-2] * out.shape[-1])  # fmt: skip
        multiplied = product(first, second, out, inner, weights)
        multiplied.read += added
        return multiplied
    if name.startswith("_scaled_dot_product"):
        return _attention(func, args, kwargs, inputs, written)
    kind = KIND_OF.get(name, "elementwise")
    read = sum(map(bytes_of, inputs.values()))
    if name in _FILLS:
        return Kernel(kind=kind, written=written)
    if name in _PICKS:
        return Kernel(kind=kind, read=written, written=written)
    if name in _PUTS:
        values = bytes_of(list(inputs.values())[-1])
        return Kernel(kind=kind, read=2 * values, written=values)
    if name == "copy_":
        return Kernel(kind=kind, read=bytes_of(args[1]), written=bytes_of(args[0]))
    if name in _PADS:
        return Kernel(kind=kind, kernels=2, read=read, written=written + read)
    if name == "masked_fill":
        return Kernel(kind=kind, kernels=2, read=read, written=written)
    return Kernel(kind=kind, read=read, written=written)


def name_of(func: Any) -> str:
    """An operator's name without its library and overload."""
    return str(func._schema.name.partition("::")[2])


def bound_to(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """An operator's arguments by their names."""
    return {spec.name: value for spec, value in zip(func._schema.arguments, args, strict=False)} | dict(kwargs)


def _attention(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], inputs: Mapping[int, Any], written: int
) -> Kernel:
    """A fused kernel: two products forwards, five backwards; half of the square where it is causal without a mask."""
    bound = bound_to(func, args, kwargs)
    query, key, value, mask = (bound.get(name) for name in ("query", "key", "value", "attn_bias"))
    assert query is not None and key is not None and value is not None
    causal = bool(bound.get("is_causal")) and (mask is None or not mask.numel())
    whole = 2.0 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    flops = whole * (0.5 if causal else 1.0) * (2.5 if name_of(func).endswith("_backward") else 1.0)
    read = sum(map(bytes_of, inputs.values()))
    return Kernel(kind="attention", read=read, written=written, flops=flops, unit="attention")
