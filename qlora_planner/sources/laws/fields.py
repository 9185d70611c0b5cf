"""A config's fields against those of one structure of its class: its dimensions and the kinds of its layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qlora_planner.record import record
from qlora_planner.sources.laws.sizes import NotWholeError, Size, described, size_at
from qlora_planner.sources.same_shape import equal, is_inert, json_type, own_names, ropes_agree
from qlora_planner.text import quoted

DEPTH = "num_hidden_layers"


class Unlike(Exception):
    """A config that is of another structure; `faults` says in how many ways, `reason` names the first."""

    def __init__(self, reason: str, faults: int) -> None:
        super().__init__(reason)
        self.reason, self.faults = reason, faults


@record
class Match:
    """The dimensions of a config, by the names that profiles use, and the number of the kind of each layer."""

    dims: dict[str, int]
    kinds: tuple[int, ...]


def matched(raw: Mapping[str, Any], structure: Mapping[str, Any], shape: Mapping[str, Any], class_name: str) -> Match:
    """The dimensions and layers of `raw` as a model of `structure`; `shape` says which fields of the class are inert.

    Raises Unlike.
    """
    given = own_names(raw, shape["aliases"])
    if given is None:
        raise Unlike("two names of one field disagree", faults=9)
    rules, peers = structure["fields"], f"the {class_name} models that are known"
    faults: list[str] = []
    dims, unsettled = _dimensions(given, rules, faults)
    dims |= _worked_out({**unsettled, **structure["derived"]}, dims, faults)
    if faults:
        raise Unlike(faults[0], len(faults))
    for name, value in given.items():
        if name in rules:
            continue
        if name not in shape["inert"]:
            faults.append(f"{peers} have no field {quoted(name)}")
        elif not is_inert(name, value, {**given, "vocab_size": dims["vocab_size"]}, shape["inert"]):
            faults.append(f"{name} is {quoted(value)}, which {class_name} does not take or which matters there")
    for name, rule in rules.items():
        fault = _fault(name, rule, given, dims)
        if fault is not None:
            faults.append(fault.format(known=peers))
    faults += [fault for need in structure["needs"] if (fault := _unmet(need, dims)) is not None]
    padding = structure.get("pad_token_id")
    if padding is not None and given.get("pad_token_id", padding) == padding and padding >= dims["vocab_size"]:
        faults.append(f"pad_token_id is {padding} unless the config says otherwise, beyond vocab_size")
    named = raw.get("architectures")
    if named and named[0] != structure["class_name"]:
        faults.append(f"architectures names {quoted(named[0])} where {peers} have {structure['class_name']}")
    if faults:
        raise Unlike(faults[0], len(faults))
    kinds = _kinds(given, structure["layers"], dims[DEPTH], peers)
    missing = sorted(set(range(len(structure["kinds"]))) - set(kinds))
    if missing:  # what is made for a kind of layer is not there without one
        raise Unlike(f"its {dims[DEPTH]} layers are without {structure['kinds'][missing[0]][0]}", faults=1)
    return Match(dims=dims, kinds=kinds)


def _dimensions(
    given: Mapping[str, Any], rules: Mapping[str, Any], faults: list[str]
) -> tuple[dict[str, int], dict[str, Size]]:
    """Dimensions that the config has, and what the class works out of those that it leaves out."""
    dims: dict[str, int] = {}
    unsettled: dict[str, Size] = {}
    for name, rule in rules.items():
        if "symbol" not in rule:
            continue
        value = given.get(name)
        if value is not None:
            if type(value) is not int or value < 1:
                faults.append(f"{name} must be a whole number from 1 on, not {quoted(value)}")
            else:
                dims[rule["symbol"]] = value
        elif (way := "null" if name in given else "absent") in rule:
            unsettled[rule["symbol"]] = rule[way]
        elif way in rule.get("none", ()):  # no sliding window: no such dimension
            continue
        else:
            faults.append(f"{name} is left out")
    return dims, unsettled


def _worked_out(unsettled: Mapping[str, Size], dims: Mapping[str, int], faults: list[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    waiting = dict(unsettled)
    for _ in range(len(unsettled)):
        for symbol, size in list(waiting.items()):
            try:
                sizes[symbol] = size_at(size, {**dims, **sizes})
            except KeyError:  # of another dimension that is not known yet
                continue
            except NotWholeError:
                faults.append(f"{symbol} is {described(size)}, which is no whole number here")
            del waiting[symbol]
    faults += [f"{symbol} cannot be worked out" for symbol in waiting]
    return sizes


def _fault(name: str, rule: Mapping[str, Any], given: Mapping[str, Any], dims: Mapping[str, int]) -> str | None:
    """What is wrong with a field that is no dimension; `{known}` stands for the models that are known."""
    if "symbol" in rule or "layers" in rule:
        return None
    present = given.get(name) is not None
    way = "null" if name in given else "absent"
    if "value" in rule:
        usual = rule.get("any_of", [rule["value"]])
        right = any(equal(given[name], value) for value in usual) if name in given else way in rule
        if right or (name in given and given[name] is None and "null" in rule) or _is_free(rule, given.get(name)):
            return None
        said = f"is {quoted(given[name])}" if name in given else "is left out"
        return _braced(f"{name} {said}; ") + "{known} " + _braced(f"have {quoted(rule['value'])}")
    try:
        wanted = size_at(rule["size"], dims)
        if present:
            value: Any = given[name]
        elif way in rule:
            value = size_at(rule[way], dims)
        else:
            return _braced(f"{name} is left out")
    except NotWholeError as fault:
        return _braced(f"{name} would be {fault}, which is no whole number here")
    if equal(value, wanted):
        return None
    how = "" if isinstance(rule["size"], int) else f", its {described(rule['size'])}"
    return _braced(f"{name} is {quoted(value)} where ") + "{known} " + _braced(f"have {wanted}{how}")


def _is_free(rule: Mapping[str, Any], value: Any) -> bool:
    """Whether the field may have any value of these types: another one overrules it, or it fills weights at random."""
    return value is not None and json_type(value) in rule.get("any", ())


def _braced(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _unmet(need: Sequence[Any], dims: Mapping[str, int]) -> str | None:
    how, first, second = need
    if first not in dims:
        return None
    size, other = dims[first], second if isinstance(second, int) else dims[second]
    if how == "divisible" and size % other:
        return f"{first} {size} is no multiple of {second}" + ("" if isinstance(second, int) else f" {other}")
    if how == "below" and size >= other:
        return f"{first} {size} is not below {second}" + ("" if isinstance(second, int) else f" {other}")
    if how == "equal" and size != other:
        return f"{first} is {size} where the known models have {other}"
    if how == "above" and size <= other:
        return f"{first} {size} is not above {second}" + ("" if isinstance(second, int) else f" {other}")
    return None


def has_a_known_rope(
    raw: Mapping[str, Any], structure: Mapping[str, Any], shape: Mapping[str, Any], dims: Mapping[str, int]
) -> bool:
    """Whether positions are told as in one of the structure's models. Factors are listed for heads of one size."""
    for name, peer in structure["models"].items():
        model = shape["models"].get(name)
        if model is None or not ropes_agree(raw, shape["rope"], model):
            continue
        if not _lists(model.get("rope") or {}) or dims.get("head_dim") == peer["dims"].get("head_dim"):
            return True
    return False


def _lists(rope: Mapping[str, Any]) -> bool:
    return any(isinstance(v, list) or (isinstance(v, Mapping) and _lists(v)) for v in rope.values())


def _kinds(given: Mapping[str, Any], layers: Mapping[str, Any], depth: int, peers: str) -> tuple[int, ...]:
    """The number of the kind of each layer. Raises Unlike."""
    names = layers["fields"]
    if not names:
        return _in_runs(layers["runs"], depth, peers)
    columns: list[Sequence[Any]] = []
    for name in names:
        usual = layers["absent"].get(name)
        value = given.get(name)
        if value is None:
            if usual is None or len(usual) < depth:
                raise Unlike(f"{name} is left out, and {peers} give it", faults=1)
            value = usual[:depth]
            for other in (other for other in names if given.get(other) is not None):
                if not equal(given[other], layers["absent"].get(other, [])[:depth]):
                    raise Unlike(f"{other} is given and {name} is left out", faults=1)
            for other, values in layers["touched_by"].items():
                if other in given and not any(equal(given[other], usual) for usual in values):
                    raise Unlike(f"{other} is {quoted(given[other])} and {name} is left out", faults=1)
        if not isinstance(value, list) or len(value) != depth:
            raise Unlike(f"{name} must be a list of {depth}, one a layer", faults=1)
        columns.append(value)
    kinds = []
    for entries in zip(*columns, strict=True):
        kind = layers["kinds"].get(json.dumps(entries))
        if kind is None:
            raise Unlike(f"{' and '.join(names)} has {quoted(entries[0])}, which {peers} have not so", faults=1)
        kinds.append(kind)
    return tuple(kinds)


def _in_runs(runs: Sequence[Sequence[int]], depth: int, peers: str) -> tuple[int, ...]:
    """Runs of one kind, the last of them as long as the model is deep."""
    first = [kind for kind, length in runs[:-1] for _ in range(length)]
    if len(first) >= depth:
        raise Unlike(f"{DEPTH} is {depth}, fewer than {peers} have", faults=1)
    return (*first, *[runs[-1][0]] * (depth - len(first)))
