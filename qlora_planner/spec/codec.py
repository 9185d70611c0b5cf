"""Profiles as JSON: compact on disk, checked to the last field when read.

What a reader can work out is left out: false flags, absent reasons, a count of 1, and `dtype_float16` where it is
`float16` beside `bfloat16` or else the same as `dtype`. Everything else is written, one tensor per line.
"""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Any

from qlora_planner.record import fields_of
from qlora_planner.spec.faults import refuse
from qlora_planner.spec.fields import (
    ADAPTER,
    ADAPTER_NEEDS,
    KIND,
    KIND_NEEDS,
    PROFILE,
    PROFILE_NEEDS,
    TENSOR,
    TENSOR_NEEDS,
    faults_of,
    good,
    path_of,
)
from qlora_planner.spec.model import AdapterTensor, LayerKind, ModelProfile, TensorGroup
from qlora_planner.text import quoted

PROFILE_SCHEMA = "qlora-plan/profile/1"


def usual_float16(dtype: Any) -> Any:
    """What loading in float16 makes of a tensor that loading in bfloat16 leaves in `dtype`."""
    return "float16" if dtype == "bfloat16" else dtype


def profile_to_dict(profile: ModelProfile) -> dict[str, Any]:
    """The profile as JSON-ready data, without what a reader can work out. `source` belongs to a copy, not to a file."""
    raw: dict[str, Any] = {"schema": PROFILE_SCHEMA}
    for name in ("id", "model_type", "class_name", "config_sha256", "params"):
        raw[name] = getattr(profile, name)
    for name in ("versions", "dims", "supports", "refusals"):
        if name != "refusals" or profile.refusals:
            raw[name] = dict(getattr(profile, name))
    for name in ("checkpoint_quantization", "note", "text_part_of", "tower"):
        if getattr(profile, name) is not None:
            raw[name] = getattr(profile, name)
    raw["layer_kinds"] = [written(kind) for kind in profile.layer_kinds]
    raw["layer_order"] = [list(run) for run in profile.layer_order]
    raw["tensors"] = [written(tensor) for tensor in profile.tensors]
    raw["adapters"] = {target: [written(tensor) for tensor in added] for target, added in profile.adapters.items()}
    return raw


def profile_to_json(profile: ModelProfile) -> str:
    """The file's text: one line per tensor, so that a change of one tensor is a change of one line."""
    lines = []
    for key, value in profile_to_dict(profile).items():
        if key in ("tensors", "layer_kinds"):
            value_text = _line_per_item(value, " ")
        elif key == "adapters":
            inner = (f"  {json.dumps(name)}: {_line_per_item(items, '   ')}" for name, items in value.items())
            value_text = "{\n" + ",\n".join(inner) + "\n }"
        else:
            value_text = json.dumps(value)
        lines.append(f" {json.dumps(key)}: {value_text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _line_per_item(items: list[Any], indent: str) -> str:
    if not items:
        return "[]"
    compact = (json.dumps(item, separators=(",", ":")) for item in items)
    return "[\n" + ",\n".join(f"{indent} {text}" for text in compact) + f"\n{indent}]"


def written(record: LayerKind | TensorGroup | AdapterTensor) -> dict[str, Any]:
    """One of a profile's parts as JSON-ready data."""
    raw = fields_of(record)
    if isinstance(record, TensorGroup) and record.dtype_float16 == usual_float16(record.dtype):
        del raw["dtype_float16"]
    if not isinstance(record, LayerKind) and raw["count"] == 1:
        del raw["count"]
    return {name: value for name, value in raw.items() if value is not None and value is not False}


def profile_from_dict(raw: object, location: str, *, source: str = "built") -> ModelProfile:
    """The profile in `raw`, as `json.loads` gives it; `location` is the path to name, `source` becomes its `.source`.

    Raises InputError naming every fault: unknown or missing fields, wrong types, layers that do not add up, references
    to tensors or layer kinds that are not there. Another schema version is one fault of its own: rebuild the profile.
    """
    if type(raw) is not dict:
        refuse(["must be a JSON object that holds a model profile"], location)
    schema = raw.get("schema")
    if schema != PROFILE_SCHEMA:
        refuse(
            [f"profile schema {quoted(schema)} is not {PROFILE_SCHEMA}; rebuild it with `qlora-plan profile`"], location
        )
    faults = faults_of(raw, PROFILE, PROFILE_NEEDS, "")
    if faults:
        refuse(faults, location)
    kinds = [
        LayerKind(**item)
        for index, item in enumerate(raw["layer_kinds"])
        if good(item, KIND, KIND_NEEDS, ("layer_kinds", index), faults)
    ]
    kind_names = {None, *(kind.name for kind in kinds)}
    tensors = _read_tensors(raw["tensors"], kind_names, faults)
    adapters = {
        target: tuple(_read_adapters(items, ("adapters", target), kind_names, faults))
        for target, items in raw["adapters"].items()
    }
    order = tuple([(index, length) for index, length in raw["layer_order"]])
    # Knock-on faults help nobody: what refers to something unreadable is not judged.
    if len(kinds) == len(raw["layer_kinds"]):
        faults.extend(_layer_faults(kinds, order))
    if len(tensors) == len(raw["tensors"]):
        faults.extend(_tie_faults(tensors))
    if faults:
        refuse(faults, location)
    return ModelProfile(
        id=raw["id"],
        model_type=raw["model_type"],
        class_name=raw["class_name"],
        config_sha256=raw["config_sha256"],
        params=raw["params"],
        versions=raw["versions"],
        dims=raw["dims"],
        supports=raw["supports"],
        layer_kinds=tuple(kinds),
        layer_order=order,
        tensors=tuple(tensors),
        adapters=adapters,
        refusals=raw.get("refusals", {}),
        checkpoint_quantization=raw.get("checkpoint_quantization"),
        note=raw.get("note"),
        text_part_of=raw.get("text_part_of"),
        tower=raw.get("tower"),
        source=source,
    )


def _read_tensors(items: list[Any], kind_names: Set[str | None], faults: list[str]) -> list[TensorGroup]:
    tensors = []
    for index, item in enumerate(items):
        if not good(item, TENSOR, TENSOR_NEEDS, ("tensors", index), faults):
            continue
        given = {"layer_kind": None, "count": 1, **item}
        if given["layer_kind"] not in kind_names:
            faults.append(f"tensors[{index}].layer_kind names no layer kind: {quoted(given['layer_kind'])}")
        given["shape"] = tuple(given["shape"])
        if "dtype_float16" not in given:
            given["dtype_float16"] = usual_float16(given["dtype"])
        tensors.append(TensorGroup(**given))
    return tensors


def _read_adapters(
    items: list[Any], at: tuple[str, str], kind_names: Set[str | None], faults: list[str]
) -> list[AdapterTensor]:
    tensors = []
    for index, item in enumerate(items):
        if not good(item, ADAPTER, ADAPTER_NEEDS, (*at, index), faults):
            continue
        kind = item.get("layer_kind")
        if kind not in kind_names:
            faults.append(f"{path_of((*at, index))}.layer_kind names no layer kind: {quoted(kind)}")
        adapter = AdapterTensor(
            module=item["module"],
            name=item["name"],
            layer_kind=kind,
            count=item.get("count", 1),
            dims=tuple([(constant, per_rank) for constant, per_rank in item["dims"]]),
            dtype=item["dtype"],
            on_parameter=item.get("on_parameter", False),
        )
        tensors.append(adapter)
    return tensors


def _layer_faults(kinds: list[LayerKind], order: tuple[tuple[int, int], ...]) -> list[str]:
    """Where the order of the layers and the count of each kind disagree."""
    faults = []
    if len({kind.name for kind in kinds}) != len(kinds):
        faults.append("layer_kinds has one name twice")
    in_order = [0] * len(kinds)
    for index, length in order:
        if index >= len(kinds) or length < 1:
            faults.append(f"layer_order has [{index}, {length}], which is no run of a known layer kind")
        else:
            in_order[index] += length
    if not faults:
        faults.extend(
            f"layer_order has {length} layers of kind {quoted(kind.name)}, layer_kinds has {kind.count}"
            for kind, length in zip(kinds, in_order, strict=True)
            if kind.count != length
        )
    return faults


def _tie_faults(tensors: list[TensorGroup]) -> list[str]:
    """Tensors tied with one that is not there, or that has no storage of its own either."""
    owners = {tensor.name for tensor in tensors if not tensor.tied_with}
    return [
        f"tensor {quoted(tensor.name)} is tied with {quoted(tensor.tied_with)}, which is not there"
        for tensor in tensors
        if tensor.tied_with and tensor.tied_with not in owners
    ]
