"""Whether a config has the shape of a catalogue model: the same tensors and, to the byte, the same shipped traces.

profiles/fields holds a table for each class, made by turning every field (tools/config_fields.py). A config is the
catalogue model's when every field that shapes the class has that model's value, or is left out where the class works
out the same; when every other field is one that the table has proved to change nothing, with a value of a type that the
class takes; and when it holds no field that the table does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_planner.bounded import small_json
from qlora_planner.record import record

FIELDS_SCHEMA = "qlora-plan/fields/1"
# How a checkpoint was stored, which code made it and who wrote the file. The builders of models never see them.
NOT_OF_THE_SHAPE = frozenset({
    "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "quantization_config",
    "_name_or_path", "name_or_path", "_commit_hash", "_attn_implementation_autoset",
})  # fmt: skip
# Where configs keep how positions turn: older ones in rope_scaling, newer ones in rope_parameters.
ROPE_TABLES = ("rope_scaling", "rope_parameters")
# How many positions a model was trained for, by the names that classes use.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


@record
class SameShape:
    """The catalogue model that a config equals in everything that shapes it."""

    model_id: str
    max_position_embeddings: int | None  # as the config has it, where the class does not care


def json_type(value: Any) -> str:
    """`null`, `bool`, `int`, `float`, `str`, `list` or `dict`."""
    return "null" if value is None else type(value).__name__


def plain_rope(rope: Any, types: Sequence[str], inert: Sequence[str]) -> Any:
    """What of a table of rope parameters shapes the model: all of it, unless its type is one of `types`."""
    if not isinstance(rope, Mapping):
        return rope
    if rope and all(isinstance(value, Mapping) or value is None for value in rope.values()):
        parts = [plain_rope(value, types, inert) for value in rope.values()]
        return parts[0] if all(part == {} for part in parts) else dict(zip(rope, parts, strict=True))
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in types:
        return {**{name: value for name, value in rope.items() if name != "type"}, "rope_type": kind}
    numbers = {name for name in inert if json_type(rope.get(name)) in ("int", "float", "bool", "null")}
    return {name: value for name, value in rope.items() if name not in numbers and name not in ("rope_type", "type")}


def same_shape(raw: Mapping[str, Any], dirs: Sequence[Path]) -> Iterator[SameShape]:
    """Every catalogue model that a parsed config.json has the shape of, by the tables in the folders `dirs`.

    None for a class without a table, and for a table that cannot be read.
    """
    kind = raw.get("model_type")
    if not isinstance(kind, str) or not kind.isidentifier():
        return
    for folder in dirs:
        try:
            table = small_json(folder / f"{kind}.json")
            if table["schema"] != FIELDS_SCHEMA:
                continue
            for structure in table["structures"]:
                yield from _of_structure(raw, structure)
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no such file, or none of ours
            continue


def _of_structure(raw: Mapping[str, Any], structure: Mapping[str, Any]) -> Iterator[SameShape]:
    given = own_names(raw, structure["aliases"])
    if given is None:
        return
    inert = structure["inert"]
    shaping = {name: value for name, value in given.items() if name not in inert}
    if not all(is_inert(name, value, given, inert) for name, value in given.items() if name in inert):
        return
    for model_id, model in structure["models"].items():
        if _fields_agree(shaping, model) and ropes_agree(raw, structure["rope"], model):
            positions = next((given[name] for name in POSITIONS if name in inert and name in given), None)
            yield SameShape(model_id=model_id, max_position_embeddings=positions)


def own_names(raw: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any] | None:
    """The config's fields under their class's own names; None where two names of one field disagree."""
    fields: dict[str, Any] = {}
    for key, value in raw.items():
        if key in NOT_OF_THE_SHAPE or key in ROPE_TABLES or key == "model_type":
            continue
        name = aliases.get(key, key)
        if name in fields and not equal(fields[name], value):
            return None
        fields[name] = value
    return fields


def is_inert(name: str, value: Any, given: Mapping[str, Any], inert: Mapping[str, Any]) -> bool:
    """Whether a field that changes nothing has a value of a type, and of a size, that the class takes."""
    law = inert[name]
    if law["types"] != "any" and json_type(value) not in law["types"]:
        return False
    if law["how"] == "unread":
        return True
    if name.endswith("_token_id") and value is not None:
        rows = given.get("vocab_size")
        return isinstance(rows, int) and -1 <= value < rows  # the class refuses ids outside its embedding
    return value is None or (value >= 0 and value not in law.get("except", ()))


def _fields_agree(given: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    fields, free = model["fields"], model.get("free", {})
    for name, value in given.items():
        if name not in fields:
            return False
        if name in free and json_type(value) in free[name]:
            continue
        if not (equal(value, fields[name]) or (value is None and name in model["null"])):
            return False
    absent = set(model["absent"])
    return all(name in given or name in absent for name in fields)


def ropes_agree(raw: Mapping[str, Any], law: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Whether the tables of rope parameters shape the model alike.

    Tables of a proved type agree when nothing is left of them. Others have to hold what the model's holds, but for what
    the class fills in from fields of its own, which are compared as fields.
    """
    wanted = model.get("rope") or {}
    tables = [raw[name] for name in ROPE_TABLES if raw.get(name)]
    if not tables:
        return "rope_type" not in wanted and not any(isinstance(part, Mapping) for part in wanted.values())
    for table in tables:
        left = plain_rope(table, law["types"], law["inert"])
        if not isinstance(left, Mapping):
            return False
        filled = set(wanted) - set(left)
        if not filled <= {"partial_rotary_factor", "rope_theta", "original_max_position_embeddings"}:
            return False
        if any(not equal(value, wanted.get(name)) for name, value in left.items()):
            return False
    return True


def equal(first: Any, second: Any) -> bool:
    """Equality in which true is not 1."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    return bool(first == second)
