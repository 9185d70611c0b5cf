"""The lists of a config that name each layer's kind, as the law of a structure writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qlora_planner.sources.same_shape import ROPE_TABLES
from qlora_planner.spec.model import ModelProfile
from tools.field_turning import finished
from tools.laws.tensors import NoLawError

_DEEPEST = 130
_MOST_FIRST = 3  # first layers of other kinds: toys have five layers or more
_OLDER_WORDS = ("attention", "mamba", "conv", "linear", "sliding", "full", "moe", "mlp")


class Listed:
    """Fields of a structure that are lists with an entry a layer: `whole` is the config as its class completes it,
    `raw` as it was given, `toy` the first toy's."""

    def __init__(
        self,
        whole: Mapping[str, Any],
        raw: Mapping[str, Any],
        shape: Mapping[str, Any],
        depth_field: str,
        toy: Mapping[str, Any],
    ) -> None:
        self.whole, self.raw, self.depth_field, self.toy = whole, raw, depth_field, toy
        self.aliases: Mapping[str, str] = shape["aliases"]
        self.inert: Mapping[str, Any] = shape["inert"]

    def is_by_layer(self, name: str) -> bool:
        """Whether a field is a list with an entry for each layer."""
        value = self.whole[name]
        depth = self.whole[self.depth_field]
        return isinstance(value, list) and len(value) == depth and depth > 1

    def law(self, configs: Sequence[Mapping[str, Any]], profiles: Sequence[ModelProfile]) -> dict[str, Any]:
        """How the lists tell each layer's kind, solved at the toys. Raises NoLawError."""
        names = [
            name for name in self.whole
            if name not in self.inert and name not in ROPE_TABLES and self.is_by_layer(name)
        ]  # fmt: skip
        if not names:
            return {"fields": [], "runs": [list(run) for run in profiles[0].layer_order]}
        first, kinds = self._kinds(names, configs, profiles)
        if not first:
            kinds |= self._other_words(names, kinds)
        last = self._last_words(names)
        absent = self._usual_layers(names, last)
        return {
            "fields": names, "kinds": kinds, "absent": absent, "pattern": self.pattern(),
            "touched_by": self._touching(names) if absent else {},
            **({"last": last} if last else {}), **({"first": first} if first else {}),
        }  # fmt: skip

    def _kinds(
        self, names: Sequence[str], configs: Sequence[Mapping[str, Any]], profiles: Sequence[ModelProfile]
    ) -> tuple[int, dict[str, int]]:
        """The kind of layer by the entries of the lists, and how many first layers are of other kinds than those after
        them with the same entries. Raises NoLawError."""
        for first in range(_MOST_FIRST + 1):
            kinds: dict[str, int] = {}
            alike = True
            for config, profile in zip(configs, profiles, strict=True):
                order = [kind for kind, length in profile.layer_order for _ in range(length)]
                columns = [finished(config, None)[name] for name in names]
                if first:
                    columns.append([number < first for number in range(len(order))])
                for entries, kind in zip(zip(*columns, strict=True), order, strict=True):
                    alike &= kinds.setdefault(json.dumps(entries), kind) == kind
            if alike:
                return first, kinds
        raise NoLawError(f"layers alike in {' and '.join(names)} are of two kinds")

    def _other_words(self, names: Sequence[str], kinds: Mapping[str, int]) -> dict[str, int]:
        """Kinds of layers by the words of published configs, which the class puts into its own."""
        if len(names) != 1:
            return {}
        words: dict[str, int] = {}
        listed = finished(self.toy, None)[names[0]]
        for word in _OLDER_WORDS:
            made = finished({**self.toy, names[0]: [word, *listed[1:]]}, None)
            meant = json.dumps([made[names[0]][0]]) if isinstance(made, dict) else ""
            if meant in kinds:
                words[json.dumps([word])] = kinds[meant]
        return words

    def _last_words(self, names: Sequence[str]) -> dict[str, Any]:
        """What the class puts in place of the last entry of a list, whatever is given there."""
        listed, forced = finished(self.toy, None), {}
        for name in names:
            others = [entry for entry in listed[name] if entry != listed[name][-1]]
            made = [finished({**self.toy, name: [*listed[name][:-1], other]}, None) for other in others]
            if others and all(isinstance(one, dict) and one[name] == listed[name] for one in made):
                forced[name] = listed[name][-1]
        return forced

    def pattern(self) -> dict[str, Any] | None:
        """The field that names each layer's kind by a letter, in place of the list, and what its letters mean."""
        lists = [name for name in self.whole if self.is_by_layer(name) and name not in self.inert]
        if len(lists) != 1:
            return None
        entries = self.whole[lists[0]]
        for name, value in self.raw.items():
            if isinstance(value, str) and len(value) == len(entries) and lists[0] not in self.raw:
                letters = dict(zip(value, entries, strict=True))
                if [letters[letter] for letter in value] == entries:
                    return {"field": name, "letters": letters}
        return None

    def shape_without(self, name: str) -> bool:
        """Whether layers that are left out too become others without this field."""
        lists = [one for one in self.whole if self.is_by_layer(one)]
        usual, without = (finished(self._bare([*lists, *more]), None) for more in ([], [name]))
        if not isinstance(usual, dict):  # lists that the class asks for are never left out
            return False
        if not lists or not isinstance(without, dict):
            return bool(lists)
        return any(usual.get(one) != without.get(one) for one in lists)

    def _bare(self, names: Sequence[str], **changes: Any) -> dict[str, Any]:
        bare = {key: value for key, value in self.toy.items() if key not in names}
        # What the class made of the layers when it completed the config may not come back in by another name.
        return {**bare, **changes}

    def _usual_layers(self, names: Sequence[str], last: Mapping[str, Any]) -> dict[str, list[Any]]:
        """What the class fills in at every depth, where that is one list cut short but for `last` entries."""
        own = self.depth_field
        longest = finished(self._bare(names, **{own: _DEEPEST}), None)
        if isinstance(longest, str):
            return {}
        usual = {name: longest[name] for name in names if isinstance(longest.get(name), list)}
        for depth in range(1, _DEEPEST):
            shorter = finished(self._bare(names, **{own: depth}), None)
            if isinstance(shorter, str):
                continue
            for name in list(usual):
                if shorter.get(name) != [*usual[name][: depth - 1], last.get(name, usual[name][depth - 1])]:
                    del usual[name]
        return usual

    def _touching(self, names: Sequence[str]) -> dict[str, list[Any]]:
        """Fields that change nothing beside lists of layers, but without them; and what they may say there."""
        usual = finished(self._bare(names), None)
        found: dict[str, list[Any]] = {}
        for name, law in self.inert.items():
            own = self.whole.get(name, self.raw.get(name))
            tried = [3, 1, 0, None, True, "x", *([own] if own is not None else [])]
            if law["types"] != "any":
                tried = [value for value in tried if value is None or type(value).__name__ in law["types"]]
            made = [(value, finished(self._bare(names, **{name: value}), None)) for value in tried]
            taken = [(value, all(one[n] == usual[n] for n in names)) for value, one in made if isinstance(one, dict)]
            if not all(same for _, same in taken):
                found[name] = [value for value, same in taken if same]
        return found
