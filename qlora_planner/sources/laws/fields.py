"""A config's fields against those of one structure of its class: its dimensions and the kinds of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_planner.record import record
from qlora_planner.sources.laws.layers import DEPTH, check_all_there, layer_kinds
from qlora_planner.sources.laws.sizes import NotWholeError, Size, described, size_at
from qlora_planner.sources.laws.unlike import Unlike
from qlora_planner.sources.same_shape import equal, is_inert, json_type, own_names, ropes_agree
from qlora_planner.text import quoted

_LEFT_OUT = {"absent": "left out", "null": "null"}
_BREAKS = "without which the class breaks as soon as it runs"


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
        raise Unlike(f"{_disagreeing(raw, shape['aliases'])} are names of one field and disagree", faults=1)
    rules, peers = structure["fields"], f"the {class_name} models that are known"
    shown = {own: name for name, own in shape["aliases"].items() if name in raw and own not in raw}
    called = {rule["symbol"]: shown.get(name, name) for name, rule in rules.items() if "symbol" in rule}
    called |= {symbol: f"{symbol} ({described(size, called)})" for symbol, size in structure["derived"].items()}
    faults: list[str] = []
    dims, unsettled = _dimensions(given, rules, faults, shown)
    dims |= _worked_out({**unsettled, **structure["derived"]}, dims, faults, called)
    whole = not faults
    vocabulary = {"vocab_size": dims["vocab_size"]} if "vocab_size" in dims else {}
    for name, value in given.items():
        if name in rules:
            continue
        if name not in shape["inert"]:
            faults.append(f"{peers} have no field {quoted(shown.get(name, name))}")
        elif not is_inert(name, value, {**given, **vocabulary}, shape["inert"]):
            how = f"{quoted(value)}, which {class_name} does not take or which matters there"
            faults.append(f"{shown.get(name, name)} is {how}")
    for name, rule in rules.items():
        fault = _fault(name, rule, given, dims if whole else None, shown, called)
        if fault is not None:
            faults.append(fault.format(known=peers))
    if whole:
        faults += [fault for need in structure["needs"] if (fault := _unmet(need, dims, called)) is not None]
        padding = structure.get("pad_token_id")
        if padding is not None and given.get("pad_token_id", padding) == padding and padding >= dims["vocab_size"]:
            faults.append(f"pad_token_id is {padding} unless the config says otherwise, beyond vocab_size")
    named = raw.get("architectures")
    if named and str(named[0]).lower() != structure["class_name"].lower():  # remote code spells it otherwise
        faults.append(f"architectures names {quoted(named[0])} where {peers} have {structure['class_name']}")
    if faults:
        raise Unlike(faults[0], len(faults), breaks=len(faults) == 1 and faults[0].endswith(_BREAKS))
    kinds = layer_kinds(given, structure["layers"], dims[DEPTH], peers)
    check_all_there(kinds, structure)
    return Match(dims=dims, kinds=kinds)


def _disagreeing(raw: Mapping[str, Any], aliases: Mapping[str, str]) -> str:
    pairs = ((name, own) for name, own in aliases.items() if name in raw and own in raw)
    return next((f"{name} and {own}" for name, own in pairs if not equal(raw[name], raw[own])), "two fields")


def _dimensions(
    given: Mapping[str, Any], rules: Mapping[str, Any], faults: list[str], shown: Mapping[str, str]
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
                faults.append(f"{shown.get(name, name)} must be a whole number from 1 on, not {quoted(value)}")
            else:
                dims[rule["symbol"]] = value
        elif (way := "null" if name in given else "absent") in rule:
            unsettled[rule["symbol"]] = rule[way]
        elif way in rule.get("none", ()):  # no sliding window: no such dimension
            continue
        elif way in rule.get("breaks", ()):
            faults.append(f"{shown.get(name, name)} is {_LEFT_OUT[way]}, {_BREAKS}")
        else:
            faults.append(f"{shown.get(name, name)} is {_LEFT_OUT[way]}")
    return dims, unsettled


def _worked_out(
    unsettled: Mapping[str, Size], dims: Mapping[str, int], faults: list[str], called: Mapping[str, str]
) -> dict[str, int]:
    sizes: dict[str, int] = {}
    waiting = dict(unsettled)
    for _ in range(len(unsettled)):
        for symbol, size in list(waiting.items()):
            try:
                sizes[symbol] = size_at(size, {**dims, **sizes})
            except KeyError:  # of another dimension that is not known yet
                continue
            except NotWholeError:
                faults.append(f"{symbol} is {described(size, called)}, which is no whole number here")
            del waiting[symbol]
    faults += [f"{symbol} cannot be worked out" for symbol in waiting]
    return sizes


def _fault(
    name: str,
    rule: Mapping[str, Any],
    given: Mapping[str, Any],
    dims: Mapping[str, int] | None,
    shown: Mapping[str, str],
    called: Mapping[str, str],
) -> str | None:
    """What is wrong with a field that is no dimension; `{known}` stands for the models that are known. Without `dims`
    nothing is said of fields that hang on dimensions."""
    if "symbol" in rule or "layers" in rule:
        return None
    present, own = given.get(name) is not None, shown.get(name, name)
    way = "null" if name in given else "absent"
    if "value" in rule:
        usual = rule.get("any_of", [rule["value"]])
        right = any(equal(given[name], value) for value in usual) if name in given else way in rule
        if right or (name in given and given[name] is None and "null" in rule) or _is_free(rule, given.get(name)):
            return None
        said = f"is {quoted(given[name])}" if name in given else "is left out"
        return _braced(f"{own} {said}; ") + "{known} " + _braced(f"have {quoted(rule['value'])}")
    if dims is None:
        return None
    try:
        wanted = size_at(rule["size"], dims)
        if present:
            value: Any = given[name]
        elif way in rule:
            value = size_at(rule[way], dims)
        else:
            return _braced(f"{own} is {_LEFT_OUT[way]}")
    except NotWholeError:
        return _braced(f"{own} would be {described(rule['size'], called)}, which is no whole number here")
    if equal(value, wanted):
        return None
    how = "" if isinstance(rule["size"], int) else f", its {described(rule['size'], called)}"
    return _braced(f"{own} is {quoted(value)} where ") + "{known} " + _braced(f"have {wanted}{how}")


def _is_free(rule: Mapping[str, Any], value: Any) -> bool:
    """Whether the field may have any value of these types: another one overrules it, or it fills weights at random."""
    return value is not None and json_type(value) in rule.get("any", ())


def _braced(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _unmet(need: Sequence[Any], dims: Mapping[str, int], called: Mapping[str, str]) -> str | None:
    how, first, second = need
    if first not in dims:
        return None
    size, other = dims[first], second if isinstance(second, int) else dims[second]
    name = called.get(first, first)
    by = str(second) if isinstance(second, int) else f"{called.get(second, second)} {other}"
    if how == "divisible" and size % other:
        return f"{name} {size} is no multiple of {by}"
    if how == "below" and size >= other:
        return f"{name} {size} is not below {by}"
    if how == "equal" and size != other:
        return f"{name} is {size} where the known models have {other}"
    if how == "above" and size <= other:
        return f"{name} {size} is not above {by}"
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
