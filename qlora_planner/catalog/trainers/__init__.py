"""Every fact of each trainer: what it does to dtypes, memory and the loss by version, what it offers, its names.

A row here, a module that builds it (`train/trainers/`) and one that traces it (`profiling/tracing/trainers/`) make a
trainer; nothing else asks for one by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from qlora_planner.catalog.trainers.records import (
    BATCH_UNITS,
    CAST_BACK,
    DIVERGENCE,
    OWN_OPTIONS,
    PASSES,
    POLICY,
    REFERENCE,
    VLLM_SHARE,
    Generation,
    LossMemory,
    TrainerRow,
    Version,
)
from qlora_planner.catalog.trainers.rows import TRAINER_ROWS
from qlora_planner.spec.run import BATCH_UNIT, RunConfig

DEFAULT_TRAINER = next(iter(TRAINER_ROWS))
# What other tools and people call each trainer.
TRAINER_NAMES: Mapping[str, str] = {name: row.name for row in TRAINER_ROWS.values() for name in row.other_names}


def trainer_named(name: str | None) -> TrainerRow:
    """The facts of a run's trainer that no version changes; None is the default trainer."""
    return TRAINER_ROWS[name or DEFAULT_TRAINER]


def data_task(run: RunConfig) -> str | None:
    """What a dataset is read for: the run's task, else `prompts` where the trainer writes the answers itself, else
    None."""
    return run.task or ("prompts" if trainer_named(run.trainer).generation is not None else None)


def run_document(run: RunConfig) -> dict[str, Any]:
    """A run's options for a document, with what its batch counts."""
    return {**run.to_dict(), BATCH_UNIT: trainer_named(run.trainer).batch_unit}


def trainer_row(name: str | None, versions: Mapping[str, str]) -> tuple[TrainerRow, LossMemory]:
    """The trainer's facts and its loss for these library versions (the newest known where a version is absent)."""
    row = trainer_named(name)
    version = version_of(row, versions)
    loss = next(loss for first, loss in row.losses if version >= first)
    if row.last_upcasting is not None and version <= row.last_upcasting:
        row = replace(row, upcasts=True)
    return row, loss


def version_of(row: TrainerRow, versions: Mapping[str, str]) -> Version:
    """The version by which the trainer's loss differs: of its package, or of its only loss where none decides.

    A package that is not named counts as newer than every known version.
    """
    return row.losses[0][0] if row.versioned_by is None else parse_version(versions.get(row.versioned_by, "999"))


def trainer_of_format(name: str) -> TrainerRow:
    """The trainer through which another tool trains."""
    return next(row for row in TRAINER_ROWS.values() if name in row.formats)


def trainer_of_stage(tool: str, stage: str) -> TrainerRow | None:
    """The trainer that another tool calls so; None for one that is not modelled."""
    return next((row for row in TRAINER_ROWS.values() if row.stages.get(tool) == stage), None)


def trainer_of_switch(tool: str, key: str) -> TrainerRow:
    """The trainer to which a key of another tool hands a run over."""
    return next(row for row in TRAINER_ROWS.values() if row.switches.get(tool) == key)


def expert_stack(row: TrainerRow) -> str | None:
    """Who stores fused experts in 4 bits and trains through this trainer; None where nobody does."""
    if row.quantizes_experts:
        return row.name
    return "axolotl's quantize_moe_experts" if "axolotl" in (*row.formats, *row.stages) else None


def owner_of(option: str) -> TrainerRow:
    """The first trainer that has an option of OWN_OPTIONS."""
    return next(row for row in TRAINER_ROWS.values() if option in row.own_options)


@cache
def parse_version(text: str) -> Version:
    """Major and minor of a version; digits only, so `1.16.0rc1` is (1, 16)."""
    parts = [int("".join(c for c in part if c.isdigit()) or 0) for part in text.split(".")[:2]]
    return (parts[0], parts[1] if len(parts) > 1 else 0)


__all__ = [
    "BATCH_UNITS",
    "CAST_BACK",
    "DEFAULT_TRAINER",
    "DIVERGENCE",
    "OWN_OPTIONS",
    "PASSES",
    "POLICY",
    "REFERENCE",
    "TRAINER_NAMES",
    "TRAINER_ROWS",
    "VLLM_SHARE",
    "Generation",
    "LossMemory",
    "TrainerRow",
    "Version",
    "data_task",
    "expert_stack",
    "owner_of",
    "parse_version",
    "run_document",
    "trainer_named",
    "trainer_of_format",
    "trainer_of_stage",
    "trainer_of_switch",
    "trainer_row",
    "version_of",
]
