"""A model's profile out of the law of its class: every tensor's shape is a sum of products of the config's sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from qlora_planner.sources.laws.sizes import size_at
from qlora_planner.spec.codec import usual_float16
from qlora_planner.spec.model import AdapterTensor, LayerKind, ModelProfile, TensorGroup

Dims = Mapping[str, int]


def law_profile(
    structure: Mapping[str, Any], dims: Dims, kinds: Sequence[int], versions: Mapping[str, str], **identity: Any
) -> ModelProfile:
    """The profile of a model of this structure with these dimensions; `kinds` numbers the kind of each of its layers.

    `identity` is what the law does not know: id, model_type, config_sha256 and what else a profile says of its source.
    Raises NotWholeError where a size is no whole number.
    """
    order = tuple(dict.fromkeys(kinds))
    counts = {kind: sum(1 for other in kinds if other == kind) for kind in order}
    names = [name for name, _ in structure["kinds"]]
    tensors = tuple(_tensor(item, dims, counts, names) for item in _as_met(structure["tensors"], order))
    return ModelProfile(
        class_name=structure["class_name"],
        params=sum(tensor.total_numel for tensor in tensors if not tensor.buffer),
        versions=versions,
        dims={
            name: size_at(size, dims)
            for name, size in structure["dims"].items()
            if name in dims or name not in structure["symbols"]
        },
        supports=structure["supports"],
        layer_kinds=tuple(
            LayerKind(name=names[kind], class_name=structure["kinds"][kind][1], count=counts[kind]) for kind in order
        ),
        layer_order=tuple((order.index(kind), len(list(run))) for kind, run in groupby(kinds)),
        tensors=tensors,
        adapters={
            target: tuple(_adapter(item, dims, counts, names) for item in _as_met(items, order))
            for target, items in structure["adapters"].items()
        },
        refusals=structure["refusals"],
        **identity,
    )


def _as_met(items: Iterable[Mapping[str, Any]], order: Sequence[int]) -> Iterator[Mapping[str, Any]]:
    """The items as a walk through the model meets them: kinds of layers in the order of their first layers."""
    for inside, stretch in groupby(items, key=lambda item: item.get("kind") is not None):
        members = list(stretch)
        if inside:
            members = [item for kind in order for item in members if item["kind"] == kind]
        yield from members


def _tensor(item: Mapping[str, Any], dims: Dims, counts: Mapping[int, int], names: Sequence[str]) -> TensorGroup:
    given = {name: value for name, value in item.items() if name not in ("kind", "count", "shape")}
    kind, dtype = item.get("kind"), item["dtype"]
    given.setdefault("dtype_float16", usual_float16(dtype))
    return TensorGroup(
        layer_kind=None if kind is None else names[kind],
        count=size_at(item.get("count", 1), dims) * (1 if kind is None else counts[kind]),
        shape=tuple(size_at(size, dims) for size in item["shape"]),
        **given,
    )


def _adapter(item: Mapping[str, Any], dims: Dims, counts: Mapping[int, int], names: Sequence[str]) -> AdapterTensor:
    kind = item.get("kind")
    return AdapterTensor(
        module=item["module"],
        name=item["name"],
        layer_kind=None if kind is None else names[kind],
        count=size_at(item.get("count", 1), dims) * (1 if kind is None else counts[kind]),
        dims=tuple((size_at(constant, dims), size_at(per_rank, dims)) for constant, per_rank in item["dims"]),
        dtype=item["dtype"],
        on_parameter=item.get("on_parameter", False),
    )
