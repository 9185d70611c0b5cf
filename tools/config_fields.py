"""`make fields`: which fields of a config shape the model and its shipped traces, found by turning each of them.

Writes profiles/fields/<model_type>.json, one a class of the catalogue. The models of a class are sorted by what their
configs have in common (a *structure*). For each structure its toy is built and traced by the recipes that ship while
every read of a field is noted. A field is inert there when

- nothing but the config's own class ever reads it, and turning it leaves every other field of the finished config as it
  was; or
- it is read, and turning it changes neither the tensors nor one event of the traces.

Everything else shapes the model. What each catalogue model has there, and which of it a config may leave out because
the class works the same out, is written down as well. Called with a folder, then model types (none: all);
`--resume` leaves out those whose file holds for these configs and library versions, and adds what a file lacks.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_planner.profiling.meta_model import installed_versions
from qlora_planner.sources.catalogue import ModelCatalogue
from qlora_planner.sources.configs import read_config
from qlora_planner.sources.same_shape import FIELDS_SCHEMA
from tools.field_turning import Structure, alike, shape_of, written

# The classes most used come first, so that a run that is stopped has made what is asked for most.
FIRST = (
    "llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gemma2", "phi3", "gemma", "qwen3_moe", "mixtral",
    "qwen3_5_text", "gpt_oss", "granite", "olmo2", "gpt_neox", "opt", "falcon", "phi", "gpt2", "smollm3", "cohere",
    "stablelm", "lfm2",
)  # fmt: skip


def document(
    model_type: str, configs: Mapping[str, Mapping[str, Any]], kept: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The table of one class: its structures, each with the inert fields and the models that have it. `kept` ones are
    taken as they are, and only models that none of them has are turned."""
    structures: list[Mapping[str, Any]] = list(kept)
    held = {name for structure in kept for name in structure["models"]}
    waiting = {name: raw for name, raw in configs.items() if name not in held}
    while waiting:
        first = next(iter(waiting))
        structure = Structure.turned(waiting[first], first)
        members = {name: raw for name, raw in waiting.items() if name == first or alike(structure, raw)}
        structures.append({
            "inert": structure.inert,
            "rope": {"types": structure.rope_types, "inert": structure.rope_inert},
            "aliases": structure.aliases,
            "models": {name: shape_of(structure, raw, name) for name, raw in members.items()},
        })  # fmt: skip
        waiting = {name: raw for name, raw in waiting.items() if name not in members}
    return {
        "schema": FIELDS_SCHEMA, "model_type": model_type, "versions": installed_versions(), "structures": structures,
    }  # fmt: skip


def main(root: Path, wanted: Iterable[str] = (), resume: bool = False) -> int:
    """Write the tables of `wanted` classes, or of all that the catalogue under `root` has."""
    (root / "fields").mkdir(exist_ok=True)
    by_type: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name in ModelCatalogue([root / "models"]).names():
        raw = read_config(root / "configs" / (name.replace("/", "__") + ".json")).config
        by_type.setdefault(raw["model_type"], {})[name] = raw
    order = sorted(by_type, key=lambda kind: (FIRST.index(kind) if kind in FIRST else len(FIRST), kind))
    for model_type in [kind for kind in order if kind in set(wanted or order)]:
        target = root / "fields" / f"{model_type}.json"
        configs = by_type[model_type]
        if resume and is_current(target, configs):
            continue
        started = time.perf_counter()
        try:
            table = document(model_type, configs, current_structures(target, configs) if resume else ())
        except Exception as error:  # a class that cannot be turned has no table: its configs are then profiled anew
            print(f"{model_type}: no table: {type(error).__name__}: {str(error)[:200]}", flush=True)
            continue
        target.write_text(written(table), encoding="utf-8")
        counts = ", ".join(f"{len(one['inert'])} inert of {len(one['models'])}" for one in table["structures"])
        print(f"{model_type}: {counts}; {time.perf_counter() - started:.0f} s", flush=True)
    return 0


def is_current(target: Path, configs: Mapping[str, Any]) -> bool:
    """Whether `target` holds the models of `configs` with the installed libraries."""
    if not target.is_file():
        return False
    kept = json.loads(target.read_text("utf-8"))
    models = {name for structure in kept["structures"] for name in structure["models"]}
    return (kept["schema"], kept["versions"], models) == (FIELDS_SCHEMA, installed_versions(), set(configs))


def current_structures(target: Path, configs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The structures in `target` that hold with the installed libraries, none where a model of theirs has gone."""
    if not target.is_file():
        return []
    kept = json.loads(target.read_text("utf-8"))
    models = {name for structure in kept["structures"] for name in structure["models"]}
    current = (kept["schema"], kept["versions"]) == (FIELDS_SCHEMA, installed_versions()) and models <= set(configs)
    return list(kept["structures"]) if current else []


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    sys.exit(main(Path(words[0]), words[1:], "--resume" in sys.argv))
