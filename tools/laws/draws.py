"""Configs of one structure drawn at random: what the law says of them against the model that the class builds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any

from qlora_planner.errors import PlannerError
from qlora_planner.profiling.build import build_profile
from qlora_planner.profiling.refusals import Prober
from qlora_planner.sources.configs import RawConfig
from qlora_planner.sources.laws.layers import DEPTH
from qlora_planner.sources.laws.sizes import NotWholeError, size_at
from qlora_planner.sources.laws.unlike import Unlike
from qlora_planner.spec.model import ModelProfile
from tools.field_turning import finished
from tools.laws.structure import POSITION, Structure
from tools.laws.tensors import facts_of

ByLaw = Callable[[RawConfig], ModelProfile]
_DRAWS, _MOST_TRIES = 2, 400
# Dimensions that hang on one another, or are no size of a tensor.
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_RELATED = (*_KV_HEADS, "num_attention_heads", "hidden_size", "sliding_window", "mamba_n_heads")
# Experts by groups, heads of one kind by those of another: a class is built without that, and breaks when it runs.
_SHARED_OUT = (
    ("n_routed_experts", "n_group"), ("num_experts", "n_group"), ("linear_num_value_heads", "linear_num_key_heads"),
    ("num_attention_heads", "num_global_key_value_heads"),
    ("mamba_num_heads", "n_groups"), ("mamba_n_heads", "mamba_n_groups"),
)  # fmt: skip
_STEPS = (2, 4, 8, 16, 32, 64)


def needs_of(made: Structure, by_law: ByLaw, prober: Prober) -> list[list[Any]]:
    """What the class asks of dimensions beyond what the law's own sizes need: found by building it otherwise."""
    needs: list[list[Any]] = []
    symbols, row = made.symbols, made.rows[0]
    kv_heads = next((name for name in _KV_HEADS if name in symbols), None)
    if kv_heads is not None:
        needs += [["above", kv_heads, 1], ["below", kv_heads, "num_attention_heads"]]
        needs += [["divisible", "num_attention_heads", kv_heads]]
    for name, by in _SHARED_OUT:
        if name in symbols and isinstance(made.whole.get(by), int) and made.whole[by] > 1:
            needs.append(["divisible", name, by if by in symbols else made.whole[by]])
    if "head_dim" not in made.derived and not _right(
        _config(made, {**row, "hidden_size": row["hidden_size"] + 2}), by_law, prober
    ):
        needs.append(["divisible", "hidden_size", "num_attention_heads"])
    alike = {name for name in symbols if len({other[name] for other in made.rows}) == 1}
    needs += [["equal", name, row[name]] for name in symbols if name in alike]
    others = [name for name in symbols if name not in _RELATED and name not in alike]
    usual = [name for name in others if name != "head_dim"]
    if _right(_config(made, {**row, **{name: row[name] + 1 for name in usual}}), by_law, prober):
        others = [name for name in others if name not in usual]
    for symbol in others:
        if _right(_config(made, {**row, symbol: row[symbol] + 1}), by_law, prober):
            continue
        step = next(
            (s for s in _STEPS if _right(_config(made, {**row, symbol: row[symbol] + s}), by_law, prober)), None
        )
        if step is None:
            raise ValueError(f"{symbol}: another size than a toy's is built otherwise than the law says")
        needs.append(["divisible", symbol, step])
    return needs


def differing_draws(made: Structure, by_law: ByLaw, prober: Prober, seed: int = 0, count: int = _DRAWS) -> str | None:
    """The first of some drawn configs that is built otherwise than the law says; None where none is."""
    drawn = random.Random(f"{made.name} {seed}")
    for raw in draws(made, by_law, drawn, count):
        if not _right(raw, by_law, prober):
            return str({k: v for k, v in raw.items() if made.whole.get(k) != v})[:400]
    return None


def draws(made: Structure, by_law: ByLaw, drawn: random.Random, count: int) -> Iterator[dict[str, Any]]:
    """Configs that the law covers, `count` of them: dimensions, depth and what is left out drawn at random."""
    seen = 0
    for _ in range(_MOST_TRIES):
        raw = _config(
            made, _row(made, drawn), drawn.randint(2, 9 if len(made.profiles[0].layer_kinds) == 1 else 14), drawn
        )
        try:
            by_law(_as_config(raw))
        except Unlike:
            continue
        yield raw
        seen += 1
        if seen == count:
            return
    raise ValueError(f"the law covers {seen} of {_MOST_TRIES} configs drawn at random")


def _row(made: Structure, drawn: random.Random) -> dict[str, int]:
    row = dict(drawn.choice(made.rows))
    kv_heads = next((name for name in _KV_HEADS if name in row), None)
    if kv_heads is not None:
        row[kv_heads] = drawn.choice([2, 3, 4, 5, 6])
        heads = row[kv_heads] * drawn.choice([2, 3, 4])
    else:
        heads = drawn.choice([2, 3, 4, 6, 8, 10])
    same_head = len({other.get("head_dim") for other in made.rows}) == 1
    width = row.get("head_dim", 0) if same_head else drawn.choice([16, 24, 32, 48, 64, 96, 128, 20, 36, 100])
    hidden, head = row["hidden_size"] // row["num_attention_heads"], row.get("head_dim")
    if head is None:  # a wide head of one size
        hidden_by_head = hidden if made.own.get("head_dim") is None else drawn.choice([64, 100, 256])
    elif made.own.get("head_dim") is None:
        row["head_dim"], hidden_by_head = width, width
    else:
        row["head_dim"], hidden_by_head = width, drawn.choice([width, 30, 64, 144])
    if made.lists_factors and head is not None:  # for heads as wide as the first toy's
        first = made.rows[0]
        row["head_dim"], hidden_by_head = first["head_dim"], first["hidden_size"] // first["num_attention_heads"]
    row["num_attention_heads"], row["hidden_size"] = heads, heads * hidden_by_head
    if "mamba_n_heads" in row:
        row["mamba_n_heads"] = heads * drawn.choice([1, 2])
    for name in row:
        if name in ("vocab_size", POSITION):
            row[name] += drawn.randint(0, 3000)
        elif name.endswith("intermediate_size") or "ffn" in name or "inner" in name:
            row[name] += drawn.choice([0, 1, 7, 32, 64, drawn.randint(0, 5000)])
    return row


def _config(
    made: Structure, row: Mapping[str, int], depth: int | None = None, drawn: random.Random | None = None
) -> dict[str, Any]:
    """A toy's config with these dimensions, and with fewer fields where `drawn` says so."""
    base = deepcopy(made.toy_configs[0])
    usual = finished(base, None)
    own = {symbol: name for symbol, name in made.own.items() if name is not None}
    raw = {**base, **{own[name]: value for name, value in row.items() if name in own}}
    if depth is not None:
        raw[own[DEPTH]] = depth
        for name in made.layer_fields:
            listed = made.usual_layers.get(name) or []
            if not set(listed) >= set(usual[name]):  # of one kind where a toy has several
                listed = usual[name]
            raw[name] = [listed[at % len(listed)] for at in range(depth)]
    for name, rule in made.rules.items():
        size = rule.get("size")
        if size is not None and name in raw:
            with suppress(NotWholeError):
                raw[name] = size_at(size, row)
    if drawn is not None:
        for name, rule in made.rules.items():
            if name in raw and "absent" in rule and drawn.random() < 0.4:
                del raw[name]
        if made.layer_fields and all(name in made.usual_layers for name in made.layer_fields) and drawn.random() < 0.5:
            for name in made.layer_fields:
                raw.pop(name, None)
    for name in list(raw):
        if name in ("id2label", "label2id"):
            del raw[name]
    return raw


def _as_config(raw: Mapping[str, Any]) -> RawConfig:
    return RawConfig(id="drawn", config=raw, sha256="0" * 64, origin="file")


def _right(raw: Mapping[str, Any], by_law: ByLaw, prober: Prober) -> bool:
    """Whether law and class agree: the same profile, or both refuse."""
    source = _as_config(raw)
    try:
        given = facts_of(by_law(source))
    except Unlike:
        return False
    try:
        return given == facts_of(build_profile(source, prober=prober))
    except PlannerError:
        return False
