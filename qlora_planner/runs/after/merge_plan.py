"""What merging will do to every tensor of a checkpoint, what it needs and what forbids it, before a byte is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError
from qlora_planner.record import record
from qlora_planner.runs.after.base import Base
from qlora_planner.runs.after.weightless import WeightlessModel
from qlora_planner.spec.faults import refuse
from qlora_planner.text import plain

if TYPE_CHECKING:
    import torch

# safetensors' names of what a floating-point tensor can be stored as; anything else is copied as it is.
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_INTEGERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
_PACKED = re.compile(r"\.(absmax|quant_map|nested_absmax|quant_state\.\w+|qweight|weight_scale(_inv)?|weight_packed)$")
# Copies in float32 of one module while PEFT merges it: B A, scaled; DoRA takes the norm of the sum and scales it too.
# Counted in peaks of the resident size over single modules.
_COPIES, _DORA_COPIES = 2, 4
# What the libraries take once they multiply: their kernels, and heap that is freed and not given back. Measured: 50 to
# 90 MiB over merges of 200 MB.
_LIBRARY_BYTES = 96 << 20


@record
class Step:
    """One tensor that is written: `key` in the file, from the stored `source`, as parameter `name` of the class.

    `action` is `copy`, `merge` or `replace`; `cast`: whether it is brought to the dtype that was asked for.
    """

    key: str
    source: str
    name: str
    action: str
    cast: bool
    size_bytes: int
    stored_bytes: int
    elements: int


@record
class MergePlan:
    """Every shard with its steps. `untied` are parameters that shared a tensor with another and no longer do."""

    shards: Mapping[str, tuple[Step, ...]]
    untied: tuple[str, ...]
    working_bytes: int  # beside what the process holds before the first shard

    @property
    def total_bytes(self) -> int:
        """What the tensors take on disk."""
        return sum(step.size_bytes for steps in self.shards.values() for step in steps)

    def count(self, action: str) -> int:
        """How many tensors that is done to."""
        return sum(step.action == action for steps in self.shards.values() for step in steps)


def plan_merge(base: Base, hollow: WeightlessModel, dtype: torch.dtype) -> MergePlan:
    """What will be written, from the headers of the base's files alone.

    Raises InputError for a base that is stored quantised, and for adapted modules that it does not hold as the class
    has them.
    """
    stored = _headers(base)
    packed = [key for key in stored if _PACKED.search(key)]
    if packed:
        raise InputError(f"{plain(base.name)}: holds quantised weights ({plain(packed[0])}); give the original base")
    names = {key: (name, whole) for key, name, whole in hollow.named(list(stored))}
    stored_names = {name for name, whole in names.values() if whole}
    untied = _untied(hollow)
    _check_complete(hollow, stored_names, base)
    keeps = _kept_in_float32(hollow.model)
    size = dtype.itemsize
    shards: dict[str, list[Step]] = {file: [] for file in base.shards}
    done: list[str] = []

    def step(key: str, source: str, name: str) -> None:
        file, kind, shape = stored[source]
        elements = prod(shape)
        action = "merge" if name in hollow.merges else "replace" if name in hollow.replaced else "copy"
        cast = kind in _FLOATS and not (kind == "F32" and any(word in name for word in keeps))
        stored_width = _FLOATS.get(kind) or _INTEGERS.get(kind)
        if stored_width is None:
            refuse([f"{source} is stored as {kind}, which cannot be merged into; give the original base"], base.name)
        shards[file].append(
            Step(
                key=key, source=source, name=name, action=action, cast=cast, elements=elements,
                size_bytes=elements * (size if cast else stored_width), stored_bytes=elements * stored_width,
            )
        )  # fmt: skip

    for key, (name, _) in names.items():
        step(key, key, name)
        for group in hollow.tied:
            if name not in group or not group & untied:
                continue
            done.append(name)
            for other in sorted(group - {name} - stored_names):
                step(other, key, other)
                done.append(other)
    return MergePlan(
        shards={file: tuple(steps) for file, steps in shards.items()},
        untied=tuple(sorted(set(done))),
        working_bytes=_working_bytes(shards, hollow),
    )


def _headers(base: Base) -> dict[str, tuple[str, str, tuple[int, ...]]]:
    """Key -> file, dtype and shape, of every tensor."""
    from safetensors import SafetensorError, safe_open

    headers: dict[str, tuple[str, str, tuple[int, ...]]] = {}
    for file in base.shards:
        try:
            with safe_open(base.folder / file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118  (no mapping)
                    part = opened.get_slice(key)
                    headers[key] = (file, str(part.get_dtype()), tuple(part.get_shape()))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{plain(base.folder / file)}: cannot be read: {plain(error)}") from None
    return headers


def _untied(hollow: WeightlessModel) -> frozenset[str]:
    """Parameters of tied groups in which only some are adapted, or not all alike: they need tensors of their own."""
    untied: set[str] = set()
    for group in hollow.tied:
        touched = [name for name in group if name in hollow.merges or name in hollow.replaced]
        trained = [hollow.replaced[name] for name in group if name in hollow.replaced]
        alike = (
            len(trained) == len(group)
            and not any(name in hollow.merges for name in group)
            and all(tensor.shape == trained[0].shape and bool((tensor == trained[0]).all()) for tensor in trained)
        )
        if touched and not alike:
            untied |= group
    return frozenset(untied)


def _check_complete(hollow: WeightlessModel, stored: set[str], base: Base) -> None:
    """Every adapted module must be met in the files, by itself or by the name that it shares a tensor with."""
    reachable = stored | {name for group in hollow.tied if group & stored for name in group}
    lost = [name for name in (*hollow.merges, *hollow.replaced) if name not in reachable]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise InputError(
            f"{plain(base.name)}: does not hold {lost[0]}{more} as the model's class has it (transformers converts it"
            " while loading), so it cannot be merged by shards; use PEFT's merge_and_unload"
        )


def _kept_in_float32(model: Any) -> tuple[str, ...]:
    """Parts of names that the class itself keeps in float32, such as a router's bias."""
    names: set[str] = set()
    for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
        names |= set(getattr(model, attribute, None) or ())
    return tuple(sorted(name.replace("*", "") for name in names))


def _working_bytes(shards: Mapping[str, list[Step]], hollow: WeightlessModel) -> int:
    """The largest shard as it is stored (pages of its file) and as it is written, and the largest module meanwhile."""
    largest = max((sum(step.size_bytes + step.stored_bytes for step in steps) for steps in shards.values()), default=0)
    module = 0
    for steps in shards.values():
        for step in steps:
            if step.action == "merge":
                layer = hollow.merges[step.name]
                copies = _DORA_COPIES if getattr(layer, "lora_magnitude_vector", None) else _COPIES
                module = max(module, step.elements * 4 * copies + step.size_bytes)
            elif step.cast:
                module = max(module, step.elements * 4)
    return largest + module + _LIBRARY_BYTES
