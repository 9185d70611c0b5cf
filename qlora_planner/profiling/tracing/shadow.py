"""Real values behind small fake tensors, integers and booleans above all, so that code which reads them can be traced.

Models ask "is this mask all ones?", "what is the largest position?". Those values do not depend on weights: they
follow from the inputs, which are known. Each fake tensor made only from known ones is computed for real beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

_MAX_ELEMENTS = 1 << 22
_MAX_FLOATS = 1 << 16  # padding masks that a class makes in floating point
_ITEM = torch.ops.aten._local_scalar_dense.default
_NONZERO = torch.ops.aten.nonzero.default
# Operators whose output's shape depends on values; those of image grids are known.
_SHAPED_BY_VALUES = {
    torch.ops.aten.repeat_interleave.Tensor,
    torch.ops.aten.unique_consecutive.default,
    torch.ops.aten._unique2.default,
}
_INDEX = torch.ops.aten.index.Tensor
_ARANGES = {torch.ops.aten.arange.default, torch.ops.aten.arange.start, torch.ops.aten.arange.start_step}
_CONSTANTS = {
    torch.ops.aten.zeros.default,
    torch.ops.aten.ones.default,
    torch.ops.aten.full.default,
    torch.ops.aten.scalar_tensor.default,
    *_ARANGES,
}
_NAME = "_shadow_value"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A result that was worked out here instead of by the fake operator."""

    value: Any


def shadow_of(tensor: Any) -> torch.Tensor | None:
    """The real value behind a fake tensor, where it is known."""
    value = getattr(tensor, _NAME, None)
    return value if isinstance(value, torch.Tensor) else None


def give_shadow(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attach a known value to a fake tensor."""
    setattr(tensor, _NAME, value)
    return tensor


def _most(dtype: torch.dtype) -> int:
    return _MAX_ELEMENTS if _integral(dtype) else _MAX_FLOATS


def _integral(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)


class Shadows:
    """Follows known values through operators and answers those that need them."""

    def __init__(self) -> None:
        self.guesses: list[str] = []

    def answer(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Known | None:
        """A result for operators whose output depends on values; None where the fake operator can do it."""
        if func is _ITEM:
            value = shadow_of(args[0])
            if value is not None:
                with _disable_current_modes():
                    return Known(value=value.item())
            if getattr(args[0], "constant", None) is not None:
                return None
            # Only logging and checks read floating-point scalars in a step; nothing allocated depends on them.
            self.guesses.append(f"item of {args[0].dtype}")
            return Known(value=False if args[0].dtype is torch.bool else 1 if _integral(args[0].dtype) else 1.0)
        if func is torch.ops.aten.equal.default:
            return Known(value=True)  # kernels ask whether a gradient is one, to spare themselves a product
        if func is _NONZERO:
            value = shadow_of(args[0])
            mask = args[0]
            if value is None:
                self.guesses.append("nonzero of an unknown mask: every element")
                count = mask.numel()
                return Known(value=torch.empty((count, mask.dim()), dtype=torch.int64, device=mask.device))
            with _disable_current_modes():
                real = value.nonzero()
            result = torch.empty(tuple(real.shape), dtype=torch.int64, device=mask.device)
            return Known(value=give_shadow(result, real))
        if func in _SHAPED_BY_VALUES:
            return _computed(func, args, kwargs)
        return None

    def follow(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Compute the value behind `result` where every tensor argument's value is known."""
        results = result if isinstance(result, (tuple, list)) else (result,)
        if not all(isinstance(part, FakeTensor) and part.numel() <= _most(part.dtype) for part in results):
            return
        tensors = [arg for arg in _flat(args) if isinstance(arg, torch.Tensor)]
        if not tensors and func not in _CONSTANTS:
            return
        values = {}
        for tensor in tensors:
            value = shadow_of(tensor)
            if value is None:
                if isinstance(tensor, FakeTensor):
                    value = getattr(tensor, "constant", None)
                    if value is None:
                        return
                else:
                    value = tensor
            values[id(tensor)] = value
        plain = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
        try:
            with _disable_current_modes():
                real = func(*_swap(args, values), **plain)
        except (RuntimeError, TypeError, NotImplementedError, IndexError):
            return
        values_of = real if isinstance(real, (tuple, list)) else (real,)
        for part, value in zip(results, values_of, strict=True):
            if isinstance(value, torch.Tensor) and value.shape == part.shape:
                give_shadow(part, value)


def _computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Known | None:
    """The result of an operator on known values, as fake tensors with the shapes that they lead to."""
    tensors = [arg for arg in _flat(args) if isinstance(arg, torch.Tensor)]
    values = {id(tensor): shadow_of(tensor) for tensor in tensors}
    if any(value is None for value in values.values()):
        return None
    with _disable_current_modes():
        real = func(*_swap(args, values), **kwargs)
    device = tensors[0].device

    def known(value: torch.Tensor) -> torch.Tensor:
        return give_shadow(torch.empty(tuple(value.shape), dtype=value.dtype, device=device), value)

    return Known(value=tuple(map(known, real)) if isinstance(real, tuple) else known(real))


def tensor_of(data: Any, **options: Any) -> torch.Tensor:
    """`torch.tensor`, which reads the numbers of tensors in a list below the dispatcher, where fake ones have none."""
    return _TENSOR(_numbers(data), **options)


_TENSOR = torch.tensor


def _numbers(data: Any) -> Any:
    if isinstance(data, (list, tuple)):
        return type(data)(_numbers(part) for part in data)
    return data.item() if isinstance(data, FakeTensor) and not data.dim() else data


def _flat(args: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for arg in args:
        if isinstance(arg, (list, tuple)):
            flat.extend(_flat(arg))
        else:
            flat.append(arg)
    return flat


def _swap(arg: Any, values: Mapping[int, torch.Tensor]) -> Any:
    if isinstance(arg, (list, tuple)):
        return type(arg)(_swap(inner, values) for inner in arg)
    return values.get(id(arg), arg) if isinstance(arg, torch.Tensor) else arg


def _positions(indices: Sequence[Any]) -> list[Any]:
    """Boolean index tensors as the integer ones that CUDA makes of them first (expandTensors)."""
    positions: list[Any] = []
    for index in indices:
        if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
            nonzero = index.nonzero()
            positions.extend(nonzero.select(1, axis) for axis in range(index.dim()))
        else:
            positions.append(index)
    return positions


def _index(tensor: Any, indices: Sequence[Any]) -> Any:
    return _INDEX(tensor, _positions(indices))


def _index_put(tensor: Any, indices: Sequence[Any], values: Any, accumulate: bool = False, unsafe: bool = False) -> Any:
    return torch.ops.aten._index_put_impl_.default(tensor, _positions(indices), values, accumulate, unsafe)


def _masked_select(tensor: Any, mask: Any) -> Any:
    tensor, mask = torch.broadcast_tensors(tensor, mask)
    return _index(tensor, [mask])


def has_mask(args: Sequence[Any]) -> bool:
    """Whether an indexing call has a boolean index, which fake tensors refuse."""
    return (
        len(args) > 1
        and isinstance(args[1], (list, tuple))
        and any(isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    )


MASKED_INDEXING: dict[Any, Any] = {
    _INDEX: _index,
    torch.ops.aten._index_put_impl_.default: _index_put,
    torch.ops.aten.index_put_.default: _index_put,
    torch.ops.aten._unsafe_index_put.default: _index_put,
}
MASKED_SELECT = torch.ops.aten.masked_select.default


def masked_select(tensor: Any, mask: Any) -> Any:
    """Elements where the mask is true."""
    return _masked_select(tensor, mask)
