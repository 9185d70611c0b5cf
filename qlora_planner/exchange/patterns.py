"""`lora_target_modules` as a regular expression, which PEFT matches with whole names of modules (tuners_utils.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qlora_planner.memory.weights.targets import WHOLE_SETS, adaptable, matches
from qlora_planner.spec.model import ModelProfile

# A file may hold any expression, and some take for ever: none of a group that is repeated, or of many that are open.
_REPEATED = re.compile(r"\)[*+{]")
_OPEN = re.compile(r"[*+}]")
_LONGEST, _MOST_OPEN = 400, 4
# What comes before the layers of a model of text where it is a part of one that sees or hears.
_PREFIXES = ("model.", "model.language_model.", "language_model.model.", "language_model.")


def named_by(pattern: str, profile: ModelProfile) -> str | None:
    """The target modules that a pattern matches, as `--target-modules` takes them.

    None where it matches nothing, some layers alone, or is one that is not tried.
    """
    expression = _compiled(pattern)
    if expression is None:
        return None
    chosen: dict[str, None] = {}
    tensors = adaptable(profile)
    layers = sum(count for _, count in profile.layer_order)
    for target in tensors:
        matched = {any(expression.fullmatch(name) for name in names) for names in _names(target, layers)}
        if len(matched) > 1:
            return None
        if matched == {True}:
            chosen[target] = None
    if not chosen:
        return None
    for name, group in profile.adapters.items():
        if name in WHOLE_SETS and {tensor.target for tensor in group} == set(chosen):
            return name
    names = tuple(dict.fromkeys(_end(target) for target in chosen))
    others = [target for target in tensors if target not in chosen and any(matches(target, name) for name in names)]
    return None if others else ",".join(names)


def _compiled(pattern: str) -> re.Pattern[str] | None:
    if len(pattern) > _LONGEST or _REPEATED.search(pattern) or len(_OPEN.findall(pattern)) > _MOST_OPEN:
        return None
    try:
        return re.compile(pattern)
    except re.error:
        return None


def _names(target: str, layers: int) -> Iterator[tuple[str, ...]]:
    """For each layer, the names that its module has in a model of text and in one that is a part of another."""
    for number in range(layers if "*" in target else 1):
        name = target.replace("*", str(number))
        rest = name.removeprefix("model.")
        yield (name, *(prefix + rest for prefix in _PREFIXES if rest != name))


def _end(target: str) -> str:
    """The last part of a module's name that is a word."""
    return target.rpartition(".")[2]
