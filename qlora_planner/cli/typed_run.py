"""The run that options on the command line describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.cli.values import check_alloc_conf, parse_stack
from qlora_planner.spec.run import RUN_FIELDS, RunConfig


def run_from(given: Mapping[str, Any]) -> RunConfig:
    """The run of the options that were given; the others keep their default or stay auto.

    Raises InputError listing every value that is out of range.
    """
    options = explicit_run_options(given)
    if "parallel" in options:
        from qlora_planner.memory.parallel.choice import usual_options

        options = usual_options(options)
    return RunConfig(**options)


def explicit_run_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Only what was typed. Raises InputError for a --stack or --alloc-conf that is not written as one."""
    explicit = {name: given[name] for name in RUN_FIELDS if given.get(name) is not None and name != "stack"}
    if "max_length" in explicit and "seq_len" not in explicit and not _scores_completions(explicit.get("trainer")):
        explicit["seq_len"] = explicit.pop("max_length")  # trl's name for it where a row is one text
    if given.get("stack") or "alloc_conf" in explicit:
        if given.get("stack"):
            explicit["stack"] = parse_stack(given["stack"])
        if "alloc_conf" in explicit:
            check_alloc_conf(explicit["alloc_conf"])
    return explicit


def _scores_completions(trainer: str | None) -> bool:
    from qlora_planner.catalog.trainers import trainer_named

    return trainer_named(trainer).scores_completions
