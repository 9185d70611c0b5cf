"""`make laws`: the law of each class's inventory, proved at every catalogue model and at configs drawn at random.

python -m tools.laws.make ROOT [CLASS ...] [--resume]. Writes ROOT/laws/<model_type>.json.gz for the classes that
ROOT/fields knows. Models of one structure share a law; one that a law does not give to the last field gets a law of its
own or is listed. Half a minute a structure; `--resume` keeps laws that hold and adds what they lack.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_planner.bounded import unpacked
from qlora_planner.profiling.meta_model import installed_versions
from qlora_planner.profiling.refusals import Prober
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.configs import RawConfig, read_config
from qlora_planner.sources.laws.lookup import LAW_SCHEMA, by_structure, check_rope
from qlora_planner.sources.laws.unlike import Unlike
from qlora_planner.sources.same_shape import FIELDS_SCHEMA
from qlora_planner.spec.model import ModelProfile
from tools.config_fields import FIRST
from tools.laws.draws import differing_draws, needs_of
from tools.laws.structure import Structure
from tools.laws.tensors import facts_of


class Class:
    """The catalogue's models of one class, and the law that is made for them."""

    def __init__(self, root: Path, model_type: str, names: list[str]) -> None:
        self.table = json.loads((root / "fields" / f"{model_type}.json").read_text("utf-8"))
        catalogue = ModelCatalogue([root / "models"])
        paths = {name: root / "configs" / (name.replace("/", "__") + ".json") for name in names}
        self.configs: dict[str, RawConfig] = {name: read_config(path, model_id=name) for name, path in paths.items()}
        self.shipped: dict[str, ModelProfile] = {name: catalogue.load(name) for name in names}
        self.law: dict[str, Any] = {
            "schema": LAW_SCHEMA, "model_type": model_type, "versions": installed_versions(), "structures": [],
        }  # fmt: skip
        self.prober = Prober()

    def make(self) -> None:
        """Fill in the structures, by one model after another that no structure covers yet; say what is left out."""
        waiting = [name for name in self.configs if not self.taken(name)]
        while waiting:
            first = waiting[0]
            try:
                structure, covered = self.structure(first, waiting)
                self.law["structures"].append(structure)
                waiting = [name for name in waiting if name not in covered]
            except Exception as error:  # the reason is what is wanted of a structure without a law
                print(f"  not {first}: {type(error).__name__}: {str(error)[:300]}", flush=True)
                waiting = waiting[1:]
                self.prober = Prober()  # what broke there may not break the next

    def keep(self, structures: list[dict[str, Any]]) -> None:
        """Take structures of a law that holds with the installed libraries."""
        self.law["structures"] = structures

    def taken(self, name: str) -> bool:
        """Whether a structure that is kept covers a model, which then is noted among its models."""
        for law in self.law["structures"]:
            if name not in law["models"] and self.fault(law, name) is None:
                law["models"][name] = {"sha256": self.configs[name].sha256, "dims": self.dims(law, name)}
            if name in law["models"]:
                return True
        return False

    def structure(self, first: str, names: list[str]) -> tuple[dict[str, Any], list[str]]:
        """The law made of the model `first` and the models that it covers. Raises ValueError where not even that."""
        shape = next((one for one in self.table["structures"] if first in one["models"]), None)
        if shape is None:
            raise ValueError("no table of its fields")
        made = Structure(self.configs[first].config, first, shape, self.prober)
        law = made.document()
        law["refusals"] = dict(self.shipped[first].refusals)
        law["needs"] = []
        law["models"] = {first: {}}
        law["needs"] = needs_of(made, lambda raw: self.by_law(raw, law), self.prober)
        spare_unused(law)
        faults = {name: self.fault(law, name) for name in names}
        covered = [name for name, fault in faults.items() if fault is None]
        if first not in covered:
            raise ValueError(faults[first])
        if wrong := differing_draws(made, lambda raw: self.by_law(raw, law), self.prober):
            raise ValueError(f"a config drawn at random is built otherwise: {wrong}")
        law["models"] = {name: {"sha256": self.configs[name].sha256, "dims": self.dims(law, name)} for name in covered}
        return law, covered

    def by_law(self, raw: RawConfig, structure: Mapping[str, Any]) -> ModelProfile:
        """What the law gives a config. Raises Unlike."""
        return by_structure(raw, structure, self.table, self.law)[0]

    def dims(self, structure: dict[str, Any], name: str) -> dict[str, int]:
        """A model's own dimensions."""
        return by_structure(self.configs[name], structure | {"models": {name: {}}}, self.table, self.law)[1].dims

    def fault(self, structure: dict[str, Any], name: str) -> str | None:
        """Where the law's profile of a catalogue model is not the one that ships."""
        try:
            raw, own = self.configs[name], structure | {"models": {name: {}}}
            made, match = by_structure(raw, own, self.table, self.law)
            check_rope(raw, own | {"models": {name: {"dims": match.dims}}}, self.table, match)
            given = facts_of(made)
        except Unlike as unlike:
            return unlike.reason
        shipped = facts_of(self.shipped[name])
        wrong = [key for key in shipped if given.get(key) != shipped[key]]
        if not wrong:
            return None
        key = wrong[0]
        if key == "tensors":
            pairs = zip(given[key], shipped[key], strict=False)
            return next((f"{one} is {other}" for one, other in pairs if one != other), "tensors in number")
        return f"{key}: {str(given.get(key))[:200]} is {str(shipped[key])[:200]}"


def spare_unused(structure: dict[str, Any]) -> None:
    """Let configs leave out a width that no tensor has, as that of experts where there are none."""
    made_of = json.dumps([structure["tensors"], structure["adapters"], structure["derived"]])
    for rule in structure["fields"].values():
        symbol = rule.get("symbol", "")
        if symbol.endswith("intermediate_size") and f'"{symbol}"' not in made_of and not {"absent", "null"} & set(rule):
            rule["none"] = ["absent", "null"]


def main(root: Path, wanted: list[str], resume: bool = False) -> int:
    """Write the laws of `wanted` classes, or of all that have a table of fields."""
    by_type: dict[str, list[str]] = {}
    for path in sorted((root / "configs").glob("*.json")):
        name = path.stem.replace("__", "/", 1)
        if (root / "models" / path.name).is_file():
            by_type.setdefault(str(read_config(path).config["model_type"]), []).append(name)
    (root / "laws").mkdir(exist_ok=True)
    order = sorted(by_type, key=lambda kind: (FIRST.index(kind) if kind in FIRST else len(FIRST), kind))
    for model_type in [kind for kind in order if kind in (wanted or order)]:
        table, target = root / "fields" / f"{model_type}.json", root / "laws" / f"{model_type}.json.gz"
        if not table.is_file() or json.loads(table.read_text("utf-8"))["schema"] != FIELDS_SCHEMA:
            print(f"{model_type}: no table of its fields", flush=True)
            continue
        if resume and is_current(target, by_type[model_type]):
            continue
        started = time.perf_counter()
        one = Class(root, model_type, by_type[model_type])
        if resume:
            one.keep(current_structures(target, by_type[model_type]))
        one.make()
        structures = one.law["structures"]
        if structures:
            target.write_bytes(gzip.compress(json.dumps(one.law, separators=(",", ":")).encode(), mtime=0))
        counts = ", ".join(str(len(structure["models"])) for structure in structures)
        print(
            f"{model_type}: {counts or 'none'} of {len(by_type[model_type])}; {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    return 0


def is_current(target: Path, names: list[str]) -> bool:
    """Whether a law was made with the installed libraries and covers the catalogue's models."""
    if not target.is_file():
        return False
    law = json.loads(unpacked(target.read_bytes(), 16 << 20))
    covered = {name for structure in law["structures"] for name in structure["models"]}
    return (law["schema"], law["versions"], covered) == (LAW_SCHEMA, installed_versions(), set(names))


def current_structures(target: Path, names: list[str]) -> list[dict[str, Any]]:
    """The structures of a law that holds with the installed libraries, none where a model of theirs has gone."""
    if not target.is_file():
        return []
    law = json.loads(unpacked(target.read_bytes(), 16 << 20))
    covered = {name for structure in law["structures"] for name in structure["models"]}
    current = (law["schema"], law["versions"]) == (LAW_SCHEMA, installed_versions()) and covered <= set(names)
    return list(law["structures"]) if current else []


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    sys.exit(main(Path(words[0]), words[1:], "--resume" in sys.argv))
