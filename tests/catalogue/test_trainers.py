"""A trainer is a row and a module a layer: no layer may lack one, and no fact may be asked by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import qlora_planner
from qlora_planner import load_model
from qlora_planner.catalog.trainers import OWN_OPTIONS, TRAINER_NAMES, TRAINER_ROWS, trainer_named, trainer_row
from qlora_planner.exchange.configs import FORMATS, PLAN
from qlora_planner.exchange.scripts.training import SCRIPTS
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.spec.run import TRAINERS as CHOICES
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.trainers import TRAINERS

# Among the names to choose from, builders, scripts, tracers, and once where a class is asked what it refuses.
MOST_LINES_WITH_A_NAME = 5


def test_every_trainer_of_the_catalogue_can_be_chosen_built_and_exported() -> None:
    assert tuple(TRAINER_ROWS) == CHOICES
    assert set(TRAINERS) == set(TRAINER_ROWS)
    assert set(SCRIPTS) == set(TRAINER_ROWS)


def test_every_trainer_of_the_catalogue_can_be_traced_at_every_version_that_changed_its_loss() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    from qlora_planner.profiling.tracing.trainers import TRACERS

    assert set(TRACERS) == set(TRAINER_ROWS)
    for name, tracers in TRACERS.items():
        first = [version for version, _ in tracers]
        assert first == sorted(first, reverse=True) and first[-1] == (0, 0), name
        assert set(first) <= {version for version, _ in TRAINER_ROWS[name].losses}, name


def test_the_newest_loss_stands_first_and_one_holds_for_every_version() -> None:
    for row in TRAINER_ROWS.values():
        first = [version for version, _ in row.losses]
        assert first == sorted(first, reverse=True) and first[-1] == (0, 0), row.name


def test_a_version_before_a_change_has_the_loss_of_before_it() -> None:
    assert trainer_row("trl-sft", {"trl": "1.14.2"})[1].kind == "chunked_no_copy"
    assert trainer_row("trl-sft", {"trl": "0.24.0"})[0].upcasts
    assert not trainer_row("trl-sft", {"trl": "0.25.0"})[0].upcasts


def test_options_that_a_trainer_alone_has_are_options_of_a_run() -> None:
    run = RunConfig()
    for row in TRAINER_ROWS.values():
        assert set(row.own_options) <= set(OWN_OPTIONS)
        assert run.with_(**row.without_others()) == run
    assert list(trainer_named("loop").lacks(run.with_(packing=True))) == ["packing"]


def test_no_name_stands_for_two_trainers_and_each_stand_in_exists() -> None:
    names = [name for row in TRAINER_ROWS.values() for name in (row.name, *row.other_names)]
    assert len(names) == len(set(names))
    assert set(TRAINER_NAMES.values()) <= set(TRAINER_ROWS)
    assert {row.instead for row in TRAINER_ROWS.values()} - {None} <= set(TRAINER_ROWS)


def test_every_config_that_is_read_is_of_a_tool_with_a_trainer() -> None:
    formats = [name for row in TRAINER_ROWS.values() for name in row.formats]
    assert sorted(formats) == sorted(set(FORMATS) - {PLAN})


def test_a_trainer_that_breaks_on_a_model_is_passed_over_unless_its_own_options_are_wanted() -> None:
    profile = replace(load_model("llama-3.1-8b"), refusals={"trl-sft": "breaks"})
    assert resolve(profile, RunConfig()).trainer.name == "hf-trainer"
    assert resolve(profile, RunConfig(packing=True)).trainer.name == "trl-sft"
    assert resolve(profile, RunConfig(method="full", compute_dtype="float16")).trainer.name == "loop"


def test_the_resolution_carries_the_facts_of_its_run_s_trainer() -> None:
    resolution = resolve(load_model("llama-3.1-8b"), RunConfig(stack={"trl": "1.10"}))
    assert (resolution.trainer.name, resolution.loss.kind) == (resolution.run.trainer, "chunked")


def test_no_module_asks_for_a_trainer_by_name() -> None:
    package = Path(qlora_planner.__path__[0])
    found: dict[str, list[str]] = {name: [] for name in TRAINER_ROWS}
    for path in sorted(package.rglob("*.py")):
        if path.parent == package / "catalog" / "trainers":
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            for name, row in TRAINER_ROWS.items():
                # What a package of that name prints, and what calls it.
                of_its_package = name in row.packages and bool({"diagnose", name} & set(path.with_suffix("").parts))
                if f'"{name}"' in line and not of_its_package:
                    found[name].append(f"{path.relative_to(package)}: {line.strip()}")
    for name, lines in found.items():
        assert len(lines) <= MOST_LINES_WITH_A_NAME, "\n".join([name, *lines])
