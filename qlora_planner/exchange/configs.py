"""Training configs of every kind, told apart by their keys."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qlora_planner.exchange import plan_file
from qlora_planner.exchange.axolotl import read as axolotl
from qlora_planner.exchange.axolotl import versions as axolotl_versions
from qlora_planner.exchange.axolotl import write as axolotl_write
from qlora_planner.exchange.files import read_yaml
from qlora_planner.exchange.foreign import foreign
from qlora_planner.exchange.llama_factory import read as llama_factory
from qlora_planner.exchange.llama_factory import write as llama_factory_write
from qlora_planner.exchange.parsed_config import NOTHING, Reading
from qlora_planner.exchange.trl import read as trl
from qlora_planner.spec.faults import refuse
from qlora_planner.text import plain

PLAN = "plan"


def _read_plan(raw: Mapping[str, Any], location: str, _stack: Mapping[str, str] = NOTHING) -> Reading:
    plan = plan_file.plan_of(raw, location)
    return Reading(
        format=PLAN,
        model_id=plan.model_id,
        run=plan.run,
        used=tuple(name for name in raw if name in ("model", "gpu", "run")),
        ignored=tuple(name for name in raw if name in plan_file.KNOWN_KEYS - {"model", "gpu", "run"}),
        not_modelled={},
        unknown=tuple(plain(name) for name in raw if name not in plan_file.KNOWN_KEYS),
        gpu=plan.gpu,
    )


Reader = Callable[[Mapping[str, Any], str, Mapping[str, str]], Reading]
# Tools whose own release is named beside the libraries'.
TOOLS = (axolotl_versions.PACKAGE,)
# Format -> whether a file is one, and its reader.
FORMATS: Mapping[str, tuple[Callable[[Mapping[str, Any]], bool], Reader]] = {
    PLAN: (plan_file.is_plan, _read_plan),
    axolotl.FORMAT: (axolotl.is_axolotl, axolotl.read),
    llama_factory.FORMAT: (llama_factory.is_llama_factory, llama_factory.read),
    trl.FORMAT: (trl.is_trl, trl.read),
}
# Format -> its key for each run option, and what changes become besides.
_WRITTEN: Mapping[str, tuple[Mapping[str, str], Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    axolotl.FORMAT: (axolotl_write.KEYS, axolotl_write.keys_besides),
    llama_factory.FORMAT: (llama_factory_write.KEYS, llama_factory_write.keys_besides),
    trl.FORMAT: (trl.KEYS, trl.keys_besides),
}
READ = "plan files, and configs of axolotl, LLaMA-Factory (0.9) and TRL's own command line"


def read_config(path: str | os.PathLike[str], kind: str | None = None, stack: Mapping[str, str] = NOTHING) -> Reading:
    """The model and run of a plan file or another tool's config; `kind` is one of FORMATS, else its keys tell.

    `stack` names versions by package: of the tool itself, whose defaults are then those, and of libraries.

    Raises InputError naming `path` and every fault, and for the files of tools that are known here and not read.
    """
    raw = read_yaml(path)
    if kind is None:
        other = foreign(raw)
        if other is not None:
            refuse([f"is {other}, which is not read here; read are {READ}"], str(path))
        kinds = [name for name, (fits, _) in FORMATS.items() if fits(raw)]
        if not kinds:
            refuse(
                ["names no model: a plan has schema, axolotl base_model, LLaMA-Factory and TRL model_name_or_path"],
                str(path),
            )
        if len(kinds) > 1:
            refuse([f"could be {' or '.join(kinds)}; --format says which"], str(path))
        kind = kinds[0]
    reading = FORMATS[kind][1](raw, str(path), stack)
    libraries = {name: version for name, version in stack.items() if name not in TOOLS}
    if not libraries:
        return reading
    return replace(reading, run=reading.run.with_(stack={**reading.run.stack, **libraries}))


def keys_of(kind: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changed run options in the keys of a config of this kind."""
    if kind not in _WRITTEN:
        return dict(changes)
    keys, besides = _WRITTEN[kind]
    return {keys[name]: value for name, value in changes.items() if name in keys} | besides(changes)
