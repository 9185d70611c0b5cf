"""The law of one structure: its fields, layers and tensors, solved at toys whose dimensions share no factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from qlora_planner.errors import PlannerError
from qlora_planner.profiling.build import OTHER_NAMES, build_profile
from qlora_planner.profiling.refusals import Prober
from qlora_planner.sources.laws.layers import DEPTH
from qlora_planner.sources.laws.sizes import Size
from qlora_planner.sources.same_shape import NOT_OF_THE_SHAPE, ROPE_TABLES
from tools.families.toys import _POSITIONS, TOYS, Toys, _config, _model, names_layers, toys_of
from tools.families.tracing import Toy
from tools.field_turning import _Bench, finished
from tools.laws.extra import extra_dimensions
from tools.laws.layers import Listed
from tools.laws.sizes import Sizes
from tools.laws.tensors import NoLawError, facts_of, solved, solved_tensors

POSITION = "max_position_embeddings"
_ONE_KERNEL = ("gelu", "gelu_pytorch_tanh")  # activations that are one call of torch
_CONFIGS = 6  # toys: two solve a sum of two products, the others prove it
_WINDOWS = tuple(515 + 6 * at for at in range(TOYS))


class Structure:
    """One structure of a class: a model that has it, the class's table of fields, and toys of it."""

    def __init__(self, raw: Mapping[str, Any], name: str, shape: Mapping[str, Any], prober: Prober) -> None:
        self.raw = {key: value for key, value in raw.items() if key not in NOT_OF_THE_SHAPE}
        self.name, self.shape = name, shape
        self.aliases: Mapping[str, str] = shape["aliases"]
        whole = finished(self.raw, None)
        if isinstance(whole, str):
            raise NoLawError(whole)
        self.whole: dict[str, Any] = {self.aliases.get(key, key): value for key, value in self.raw.items()} | whole
        for key, value in whole.items():
            if key not in self.raw and names_layers(value, int(self.whole[self.aliases.get(DEPTH, DEPTH)])):
                del self.whole[key]  # worked out from the others, for this depth
        windowed = isinstance(whole.get("sliding_window"), int) and whole.get("use_sliding_window") is not False
        self.toys: Toys = toys_of(raw, _WINDOWS if windowed else (), any_head=True)
        self.toy_configs = [self._plain(config) for config in self.toys.configs[:_CONFIGS]]
        # Heads of latent attention are of several sizes, and one of those is called the head's.
        self.latent = "qk_rope_head_dim" in self.whole
        own = [name for name in self.toys.symbols if not (self.latent and name == "head_dim")]
        tabled: list[dict[str, int]] = [{}] * _CONFIGS
        positions = self.aliases.get(POSITION, POSITION)
        if POSITION not in own and positions in self.whole and _tables_positions(self.toy_configs[0], positions):
            tabled = [{POSITION: value} for value in _POSITIONS[:_CONFIGS]]
            for config, row in zip(self.toy_configs, tabled, strict=True):
                config[positions] = row[POSITION]
        self.extra = extra_dimensions(self.whole, [*self.shape["inert"], *self.aliases, *own], self.toy_configs)
        if self.latent:
            for config in self.toy_configs:
                self._as_latent(config)
        self.rows = [
            {**{name: row[name] for name in own}, **more, **{name: config[name] for name in self.extra}}
            for row, more, config in zip(self.toys.dims[:_CONFIGS], tabled, self.toy_configs, strict=True)
        ]
        self.symbols = tuple(self.rows[0])
        self.profiles = [build_profile(Toy(config=config), prober=prober) for config in self.toy_configs]
        self.windowless, self.needs_window = self._without_window(prober) if windowed else (False, False)
        self.sizes = Sizes(self.symbols, self.rows)
        self.own = {symbol: self._own_name(symbol) for symbol in (*self.symbols, DEPTH, POSITION)}
        self.listed = Listed(self.whole, self.raw, shape, self.own[DEPTH] or DEPTH, self.toy_configs[0])
        self._bench: tuple[_Bench, Any] | None = None
        self.rules: dict[str, dict[str, Any]] = {}
        self.derived: dict[str, Size] = {}
        self.layer_fields: list[str] = []
        self.usual_layers: dict[str, list[Any]] = {}

    def _plain(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A toy's config without a number of positions that its class does not have."""
        return {name: value for name, value in config.items() if name != POSITION or name in self.whole}

    def _as_latent(self, config: dict[str, Any]) -> None:
        """A toy's fields that follow others in this class, which the toy has turned."""
        if self.whole.get("head_dim") == self.whole["qk_rope_head_dim"]:
            config["head_dim"] = config["qk_rope_head_dim"]
        if self.whole.get("num_key_value_heads") == self.whole["num_attention_heads"]:
            config["num_key_value_heads"] = config["num_attention_heads"]

    def _own_name(self, symbol: str) -> str | None:
        """The field that holds a dimension, as the class itself calls it; None where the class works it out."""
        for name in (symbol, self.aliases.get(symbol), OTHER_NAMES.get(symbol)):
            if name is not None and self.whole.get(name) is not None:
                return name
        return None

    @property
    def lists_factors(self) -> bool:
        """Whether positions are told by lists as long as the heads are wide."""
        return any(
            isinstance(value, list) for name in ROPE_TABLES for value in (self.toy_configs[0].get(name) or {}).values()
        )

    def document(self) -> dict[str, Any]:
        """The law, ready for JSON. Raises NoLawError."""
        first = self.profiles[0]
        for other in self.profiles[1:]:
            if (other.class_name, dict(other.supports), other.layer_order) != (
                first.class_name, dict(first.supports), first.layer_order,
            ) or other.layer_kinds != first.layer_kinds:  # fmt: skip
                raise NoLawError("toys of one structure differ in their layers")
        self.rules, self.derived, layers = (
            self._fields(),
            self._derived(),
            self.listed.law(self.toy_configs, self.profiles),
        )
        self.layer_fields, self.usual_layers = layers["fields"], layers.get("absent", {})
        found = {
            "class_name": first.class_name,
            "supports": dict(first.supports),
            "symbols": list(self.symbols),
            "letters": [
                name for name in self.toys.symbols if name in self.symbols
            ],  # what families of traces may differ in
            "fields": self.rules,
            "derived": self.derived,
            "layers": layers,
            "dims": self._dims(),
            "kinds": [[kind.name, kind.class_name] for kind in first.layer_kinds],
            "tensors": solved_tensors(self.profiles, [profile.tensors for profile in self.profiles], self.sizes),
            "adapters": {
                target: solved_tensors(
                    self.profiles, [profile.adapters[target] for profile in self.profiles], self.sizes
                )
                for target in first.adapters
            },
        }
        padding = finished({k: v for k, v in self.raw.items() if k != "pad_token_id"}, None)
        if isinstance(padding, dict) and isinstance(padding.get("pad_token_id"), int):
            found["pad_token_id"] = padding["pad_token_id"]
        return found

    # Fields

    def _fields(self) -> dict[str, dict[str, Any]]:
        taken = {own: symbol for symbol, own in self.own.items() if own is not None}
        names = [
            name for name in self.whole
            if (name in taken or name not in self.shape["inert"]) and name not in ROPE_TABLES and name != "model_type"
        ]  # fmt: skip
        completed = [finished(config, None) for config in self.toy_configs]
        pattern = self.listed.pattern() or {}
        rules: dict[str, dict[str, Any]] = {}
        for name in names:
            if name in taken:
                rules[name] = {"symbol": taken[name]} | self._left_out(name, completed)
                if name == "sliding_window" and self.windowless:
                    rules[name]["none"] = self._none(name)
                elif name == "sliding_window" and self.needs_window:
                    rules[name]["breaks"] = self._none(name)
            elif self.listed.is_by_layer(name) or name == pattern.get("field"):
                rules[name] = {"layers": True}
            elif name in self.toys.symbols and self.whole[name] is None:  # worked out, unless it is given
                size = self._worked_out(name)
                rules[name] = {"size": size, "absent": size, "null": size}
            elif name not in completed[0]:
                rules[name] = self._own_rule(name)
            else:
                rules[name] = self._other_rule(name, completed)
        return rules

    def _own_rule(self, name: str) -> dict[str, Any]:
        """A field that the class takes apart while it reads its config."""
        model = self.shape["models"][self.name]
        ways = {way: True for way in ("absent", "null") if name in model[way]}
        return {"value": self.whole[name], **ways}

    def _other_rule(self, name: str, completed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        values = [config[name] for config in completed]
        numbers = all(type(value) is int for value in values)
        size = self.sizes.fit(values) if numbers else None
        if size is not None and not isinstance(size, int):
            return {"size": size, **self._left_out(name, completed)}
        if any(value != values[0] for value in values):
            raise NoLawError(f"{name} differs from toy to toy: {values[:3]}")
        value = self.whole[name]
        if value != values[0] and not numbers:
            raise NoLawError(f"{name} is {value!r} in the model and {values[0]!r} in its toys")
        rule: dict[str, Any] = {"value": value}
        for way, change in (("absent", _without), ("null", _nulled)):
            changed = [finished(change(config, name), None) for config in self.toy_configs]
            pairs = zip(changed, completed, strict=True)
            if all(isinstance(one, dict) and (one == usual or _carried(name, one, usual)) for one, usual in pairs):
                rule[way] = True
        if "absent" in rule and self.listed.shape_without(name):
            del rule["absent"]
        if value in _ONE_KERNEL:
            others = [other for other in _ONE_KERNEL if self._traces_alike({name: other})]
            rule["any_of"] = [value, *(other for other in others if other != value)]
            changed = [finished(_without(config, name), None) for config in self.toy_configs]
            if all(isinstance(one, dict) and one.get(name) in rule["any_of"] for one in changed):
                rule["absent"] = True
        model = self.shape["models"].get(self.name, {})
        if name in model.get("free", {}):
            rule["any"] = model["free"][name]
        elif isinstance(value, float) and name.startswith("init"):  # how weights are drawn, which never are here
            rule["any"] = ["float"]
        return rule

    def _traces_alike(self, changes: Mapping[str, Any]) -> bool:
        """Whether a toy with other values is built and, by the recipes that ship, traced as it is without them."""
        if self._bench is None:
            bench = _Bench(self.name)
            self._bench = bench, bench.outcome(self.toy_configs[0])
        bench, usual = self._bench
        return bench.same(self.toy_configs[0] | dict(changes), usual)

    def _left_out(self, name: str, completed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the class works out for a number that is left out or null, where that can be written down."""
        if name == "mamba_n_heads":  # the width of these heads follows, where that is whole
            usual = finished({"model_type": self.whole["model_type"]}, None)
            return {"absent": usual[name]} if isinstance(usual, dict) and isinstance(usual.get(name), int) else {}
        ways: dict[str, Any] = {}
        for way, change in (("absent", _without), ("null", _nulled)):
            changed = [finished(change(config, name), None) for config in self.toy_configs]
            if not all(isinstance(one, dict) and type(one.get(name)) is int for one in changed):
                continue
            rest = all(
                {**one, name: None} == {**usual, name: None} for one, usual in zip(changed, completed, strict=True)
            )
            size = self.sizes.fit([one[name] for one in changed])
            if rest and size is not None:
                ways[way] = size
        return ways

    def _none(self, name: str) -> list[str]:
        """In which ways a field may be left out so that the class has nothing there."""
        ways = (("absent", _without), ("null", _nulled))
        changed = {way: finished(change(self.toy_configs[0], name), None) for way, change in ways}
        return [way for way, one in changed.items() if isinstance(one, dict) and one.get(name) is None]

    def _without_window(self, prober: Prober) -> tuple[bool, bool]:
        """Whether a toy without a sliding window is the same but for the window; whether it breaks as it runs."""
        toy = Toy(config=_nulled(self.toy_configs[0], "sliding_window"))
        try:
            wide = facts_of(build_profile(toy, prober=prober))
        except PlannerError:
            return False, False
        usual = facts_of(self.profiles[0])
        usual["dims"].pop("sliding_window", None)
        breaks = Prober().refusal(toy.config, (), attention="sdpa" if usual["supports"]["sdpa"] else "eager")
        return wide == usual and breaks is None, breaks is not None

    def _derived(self) -> dict[str, Size]:
        """Dimensions that are no field: they have to be worked out of the others."""
        return {symbol: self._worked_out(symbol) for symbol in self.symbols if self.own[symbol] is None}

    def _worked_out(self, symbol: str) -> Size:
        others = [other for other in self.symbols if other != symbol]
        values = [row[symbol] for row in self.rows]
        size = Sizes(others, self.rows).fit(values)
        heads = "num_attention_heads"
        if symbol == "head_dim" and all(
            row["hidden_size"] == value * row[heads] for row, value in zip(self.rows, values, strict=True)
        ):
            size = [[1, 1, "hidden_size", f"/{heads}"]]  # of toys whose heads are of one size too
        if size is None:
            raise NoLawError(f"{symbol} is no field and no product of the others")
        return size

    # What is made of it

    def _dims(self) -> dict[str, Size]:
        found: dict[str, Size] = {}
        for name in self.profiles[0].dims:
            values = [profile.dims.get(name) for profile in self.profiles]
            symbol: Size = [[1, 1, name]]
            if name in (DEPTH, POSITION) or name in self.symbols:
                found[name] = symbol
            elif not all(type(value) is int for value in values):
                raise NoLawError(f"the dimension {name} is no whole number")
            elif name == "position_rows":
                found[name] = [[1, 1, POSITION]]
            else:
                found[name] = solved([int(value or 0) for value in values], f"the dimension {name}", self.sizes)
        return found


def _tables_positions(config: Mapping[str, Any], name: str) -> bool:
    """Whether the field `name`, how many positions there are, is the size of a tensor, if only of a buffer."""
    sizes = []
    for value in (config[name], 2 * config[name]):
        model = _model(_config({**config, name: value}))
        sizes.append([tensor.shape for tensor in (*model.parameters(), *model.buffers())])
    return sizes[0] != sizes[1]


def _carried(name: str, one: Mapping[str, Any], usual: Mapping[str, Any]) -> bool:
    """Whether two finished configs differ in nothing but a field that the class merely keeps."""
    return name not in one and dict(one) == {key: value for key, value in usual.items() if key != name}


def _without(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: deepcopy(value) for key, value in config.items() if key != name}


def _nulled(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**deepcopy(dict(config)), name: None}
