"""Dimensions that families of traces hold fixed: widths of feed-forward parts, experts, ranks. A law has them free."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from typing import Any

from tools.families.toys import TOYS, _config, _shapes

_WIDTHS = (960, 1472, 1088, 1856, 1216, 2176, 1664, 2432)
_EXPERTS = (16, 18, 20, 22, 26, 17, 19, 21)
_CHOSEN = (2, 3, 5, 4, 6, 7, 2, 3)
_KV_HEADS = (2, 3, 5, 4, 7, 2, 11, 9)  # dividing the toys' heads
_VALUE_HEADS = (6, 6, 20, 12, 14, 10, 33, 27)  # multiples of those
_MAMBA_HEADS = (16, 48, 80, 32, 112, 64, 176, 144)  # of eight groups
_GLOBAL_KV_HEADS = (3, 2, 10, 5, 14, 9, 22, 18)  # dividing the toys' heads too
_RANKS = (48, 80, 56, 112, 88, 40, 104, 136)
# What a field of this name may be at the toys.
_KINDS: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"experts_per_to|top_?k_experts|moe_?top_?k$|moe_k$", _CHOSEN),
    (r"(num|routed|local)_experts$", _EXPERTS),
    (r"ffn|inner|intermediate_size", _WIDTHS),
    (r"lora_rank$|d_state$|state_size$|(nope|rope|v)_head_dim$|(key|value|mamba|global)_head_dim$", _RANKS),
    (r"num_kv_heads$|linear_num_key_heads$", _KV_HEADS),
    (r"num_global_key_value_heads$", _GLOBAL_KV_HEADS),
    (r"linear_num_value_heads$", _VALUE_HEADS),
    (r"mamba_num_heads$", _MAMBA_HEADS),
)
# Told apart by where they begin, and kept as they are: each a multiple of what it is shared out to.
_SHARED_OUT = (_KV_HEADS, _GLOBAL_KV_HEADS, _VALUE_HEADS, _MAMBA_HEADS)


def extra_dimensions(whole: Mapping[str, Any], skipped: Collection[str], toys: list[dict[str, Any]]) -> list[str]:
    """Fields that are set to other values in each toy, so that they are dimensions too; the toys are changed in place.

    Fields as wide as the hidden size, or half as wide, that have to stay so are made so in the toys.
    """
    names = [
        name for name, value in whole.items()
        if type(value) is int and value > 1 and name not in skipped and toys[0].get(name) == value
    ]  # fmt: skip
    extra: list[str] = []
    hidden = next((name for name in ("hidden_size", "n_embd", "d_model") if name in toys[0]), None)
    for name in names:
        value = whole[name]
        values = next((values for pattern, values in _KINDS if re.search(pattern, name)), None)
        changed = [dict(toy) for toy in toys]
        if values is not None and _is_dimension(toys, name, values):
            for at, toy in enumerate(changed):
                # Two fields of one kind are told apart.
                turn = at if any(values is one for one in _SHARED_OUT) else (at + 3 * len(extra)) % TOYS
                if values is _WIDTHS:  # the toys' own widths are the same series
                    toy[name] = values[(turn + 1) % TOYS] + 64 * (len(extra) + 1)
                else:
                    toy[name] = values[turn]
                if values is _EXPERTS and isinstance(groups := whole.get("n_group"), int):
                    toy[name] *= groups
            extra.append(name)
        elif hidden is not None and name.endswith(("_dim", "_size")) and whole.get(hidden, 0) in (value, 2 * value):
            for toy in changed:
                toy[name] = toy[hidden] * whole[name] // whole[hidden]
        toys[:] = changed
    return extra


def _is_dimension(toys: list[dict[str, Any]], name: str, values: tuple[int, ...]) -> bool:
    """Whether the class can be built with other values, and has the same tensors then."""
    names = None
    for value in values[:2]:
        changed = copy.deepcopy(toys[0]) | {name: value}
        try:
            found = [tensor for tensor, _ in _shapes(_config(changed))]
        except Exception:  # a class may refuse what it does not leave free
            return False
        names = names or found
        if found != names:
            return False
    usual = [tensor for tensor, _ in _shapes(_config(copy.deepcopy(toys[0])))]
    return names == usual or "experts" in name
