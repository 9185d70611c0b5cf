"""What each field of a profile's JSON must be, checked cheaply enough to read a whole catalogue at every start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from qlora_planner.spec.model import ROLES
from qlora_planner.text import quoted

# Those whose size is known: catalog/dtypes.py holds the bytes, a test holds the two together.
DTYPES = frozenset({
    "float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "complex64",
    "int64", "int32", "int16", "int8", "uint8", "bool",
})  # fmt: skip

# Far beyond any model, yet small enough that no product of them overflows an index or takes long to compute.
_MOST = 1 << 40
_INT = {int}

# A check is (does the value pass, what it must be). Checks look at exact types: JSON has no others, and
# `type(x) is int` both is quick and keeps booleans out.
Check = tuple[Callable[[Any], bool], str]


def _is_text(value: Any) -> bool:
    return type(value) is str and value != ""


def _is_text_or_none(value: Any) -> bool:
    return value is None or (type(value) is str and value != "")


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= _MOST


def _is_shape(value: Any) -> bool:
    return type(value) is list and (
        not value or ({*map(type, value)} <= _INT and min(value) >= 0 and max(value) <= _MOST)
    )


def _is_pairs(value: Any) -> bool:
    if type(value) is not list:
        return False
    for pair in value:
        if type(pair) is not list or len(pair) != 2:
            return False
        first, second = pair
        if type(first) is not int or type(second) is not int or not (0 <= first <= _MOST and 0 <= second <= _MOST):
            return False
    return True


def _is_dtype(value: Any) -> bool:
    return type(value) is str and value in DTYPES


def _is_role(value: Any) -> bool:
    return type(value) is str and value in ROLES


def _map_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is dict and all(accepts(item) for item in value.values())


def _is_dim(value: Any) -> bool:
    return value is None or (type(value) is int and abs(value) <= _MOST) or (type(value) is float and isfinite(value))


_TEXT = (_is_text, "must be a text")
_TEXT_OR_NONE = (_is_text_or_none, "must be a text or null")
_FLAG = (_is_flag, "must be true or false")
_COUNT = (_is_count, "must be a whole number from 1")
_DTYPE = (_is_dtype, "must be a torch dtype such as bfloat16")
_PAIRS = (_is_pairs, "must be a list of [whole number, whole number]")
_LIST = (lambda value: type(value) is list, "must be a list")

TENSOR: dict[str, Check] = {
    "name": _TEXT,
    "layer_kind": _TEXT_OR_NONE,
    "count": _COUNT,
    "shape": (_is_shape, "must be a list of whole numbers"),
    "dtype": _DTYPE,
    "dtype_float16": _DTYPE,
    "role": (_is_role, f"must be one of {', '.join(ROLES)}"),
    "module_class": _TEXT,
    "buffer": _FLAG,
    "quantized": _FLAG,
    "reason": _TEXT_OR_NONE,
    "tied_with": _TEXT_OR_NONE,
}
TENSOR_NEEDS = frozenset({"name", "shape", "dtype", "role", "module_class"})

ADAPTER: dict[str, Check] = {
    "module": _TEXT,
    "name": _TEXT,
    "layer_kind": _TEXT_OR_NONE,
    "count": _COUNT,
    "dims": _PAIRS,
    "dtype": _DTYPE,
    "on_parameter": _FLAG,
}
ADAPTER_NEEDS = frozenset({"module", "name", "dims", "dtype"})

KIND: dict[str, Check] = {"name": _TEXT, "class_name": _TEXT, "count": _COUNT}
KIND_NEEDS = frozenset(KIND)

PROFILE: dict[str, Check] = {
    "schema": _TEXT,
    "id": _TEXT,
    "model_type": _TEXT,
    "class_name": _TEXT,
    "config_sha256": _TEXT,
    "params": _COUNT,
    "versions": (_map_of(_is_text), "must map packages to versions"),
    "dims": (_map_of(_is_dim), "must map names to finite numbers or null"),
    "supports": (_map_of(_is_flag), "must map names to true or false"),
    "layer_kinds": _LIST,
    "layer_order": _PAIRS,
    "tensors": _LIST,
    "adapters": (_map_of(_LIST[0]), "must map target modules to lists"),
    "refusals": (_map_of(_is_text), "must map options to texts"),
    "checkpoint_quantization": _TEXT_OR_NONE,
    "note": _TEXT_OR_NONE,
    "text_part_of": _TEXT_OR_NONE,
    "tower": _TEXT_OR_NONE,
}
PROFILE_NEEDS = frozenset(PROFILE) - {"refusals", "checkpoint_quantization", "note", "text_part_of", "tower"}


def good(
    item: Any, checks: Mapping[str, Check], needs: frozenset[str], at: tuple[str | int, ...], faults: list[str]
) -> bool:
    """Whether `item` is an object of exactly these fields; if not, says in `faults` what is wrong with it."""
    if type(item) is dict:
        good = needs <= item.keys()
        if good:
            for key, value in item.items():
                check = checks.get(key)
                if check is None or not check[0](value):
                    good = False
                    break
        if good:
            return True
    faults.extend(faults_of(item, checks, needs, path_of(at)) or [f"{path_of(at)} cannot be read"])
    return False


def faults_of(item: Any, checks: Mapping[str, Check], needs: frozenset[str], path: str) -> list[str]:
    if type(item) is not dict:
        return [f"{path} must be an object, not {quoted(item)}"]
    prefix, inside = (f"{path}.", f"{path} ") if path else ("", "")
    faults = [f"{inside}lacks {name}" for name in checks if name in needs and name not in item]
    for key, value in item.items():
        check = checks.get(key)
        if check is None:
            faults.append(f"{inside}has an unknown field {quoted(key)}")
        elif not check[0](value):
            faults.append(f"{prefix}{key} {check[1]}, not {quoted(value)}")
    return faults


def path_of(at: tuple[str | int, ...]) -> str:
    """`("adapters", "all-linear", 3)` as `adapters.all-linear[3]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at)[1:]
