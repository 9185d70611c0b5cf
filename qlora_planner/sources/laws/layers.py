"""The kind of each layer of a config, against those that the known models of its structure have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qlora_planner.sources.laws.unlike import Unlike
from qlora_planner.sources.same_shape import equal
from qlora_planner.text import quoted

DEPTH = "num_hidden_layers"


def layer_kinds(given: Mapping[str, Any], layers: Mapping[str, Any], depth: int, peers: str) -> tuple[int, ...]:
    """The number of the kind of each layer; `peers` are the known models in words. Raises Unlike."""
    names = layers["fields"]
    if not names:
        return _in_runs(layers["runs"], depth, peers)
    given = _by_letters(given, layers, depth, peers)
    columns: list[Sequence[Any]] = []
    for name in names:
        usual = layers["absent"].get(name)
        value = given.get(name)
        if value is None:
            if usual is None or len(usual) < depth:
                letters = (layers.get("pattern") or {}).get("field")
                listed = f"{name} or {letters}" if letters else name
                raise Unlike(f"{listed} is left out for {DEPTH} {depth}, and {peers} give it")
            value = usual[:depth]
            for other in (other for other in names if given.get(other) is not None):
                if not equal(given[other], layers["absent"].get(other, [])[:depth]):
                    raise Unlike(f"{other} is given and {name} is left out")
            for other, values in layers["touched_by"].items():
                if other in given and not any(equal(given[other], usual) for usual in values):
                    raise Unlike(f"{other} is {quoted(given[other])} and {name} is left out")
        if not isinstance(value, list) or len(value) != depth:
            raise Unlike(f"{name} must be a list of {depth}, as {DEPTH} says")
        last = layers.get("last", {}).get(name)  # the class takes this one whatever is given
        columns.append(value if last is None else [*value[:-1], last])
    if first := layers.get("first"):  # a number of layers that no list tells from the others
        columns.append([number < first for number in range(depth)])
    kinds = []
    for entries in zip(*columns, strict=True):
        kind = layers["kinds"].get(json.dumps(entries))
        if kind is None:
            raise Unlike(f"{' and '.join(names)} has {quoted(entries[0])}, which {peers} have not so")
        kinds.append(kind)
    return tuple(kinds)


def _by_letters(given: Mapping[str, Any], layers: Mapping[str, Any], depth: int, peers: str) -> Mapping[str, Any]:
    """The config with its layers listed, where it names them by a letter each. Raises Unlike."""
    pattern = layers.get("pattern")
    text = None if pattern is None else given.get(pattern["field"])
    if pattern is None or text is None:
        return given
    name = pattern["field"]
    if not isinstance(text, str) or len(text) != depth:
        raise Unlike(f"{name} must be a text of {depth} letters, as {DEPTH} says")
    other = next((letter for letter in text if letter not in pattern["letters"]), None)
    if other is not None:
        raise Unlike(f"{name} has {quoted(other)}, which {peers} have not so")
    listed = [pattern["letters"][letter] for letter in text]
    (field,) = layers["fields"]
    if given.get(field) is not None and not equal(given[field], listed):
        raise Unlike(f"{name} and {field} disagree")
    return {**given, field: listed}


def check_all_there(kinds: Sequence[int], structure: Mapping[str, Any]) -> None:
    """What is made for a kind of layer is not there without one. Raises Unlike."""
    missing = sorted(set(range(len(structure["kinds"]))) - set(kinds))
    if missing:
        said = "".join(f" and {name}" for name in structure["layers"]["fields"])
        raise Unlike(f"by {DEPTH} {len(kinds)}{said} no layer is of {structure['kinds'][missing[0]][0]}")


def _in_runs(runs: Sequence[Sequence[int]], depth: int, peers: str) -> tuple[int, ...]:
    """Runs of one kind, the last of them as long as the model is deep."""
    first = [kind for kind, length in runs[:-1] for _ in range(length)]
    if len(first) >= depth:
        raise Unlike(f"{DEPTH} is {depth}, fewer than {peers} have")
    return (*first, *[runs[-1][0]] * (depth - len(first)))
