"""Preference training in axolotl's and LLaMA-Factory's words: read as trl's trainers, and written back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_planner import load_model
from qlora_planner.errors import InputError
from qlora_planner.exchange.configs import read_config
from qlora_planner.exchange.export import export
from qlora_planner.memory.options.resolve import resolve
from qlora_planner.spec.run import RunConfig
from tests.exchange.test_other_tools import AXOLOTL, FACTORY, read

LLAMA = load_model("llama-3.1-8b")


def planned(**options: Any) -> tuple[RunConfig, dict[str, Any]]:
    run = resolve(LLAMA, RunConfig(alloc_conf="expandable_segments:True", **options)).run
    return run, {"schema": "qlora-plan/plan/1", "model": {"id": LLAMA.id}, "gpu": None, "run": run.to_dict()}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rl": "dpo"}, ("trl-dpo", None, None, None)),
        ({"rl": "ipo", "rl_beta": 0.3}, ("trl-dpo", "ipo", 0.3, None)),
        ({"rl": "dpo", "dpo_loss_type": ["sigmoid", "sft"]}, ("trl-dpo", "sigmoid,sft", None, None)),
        ({"rl": "kto", "precompute_ref_log_probs": True}, ("trl-kto", None, None, True)),
        ({"rl": "orpo", "rl_beta": 0.2}, ("trl-orpo", None, 0.2, None)),
        ({"rl": "dpo", "sample_packing": True, "plugins": ["x.CutCrossEntropyPlugin"]}, ("trl-dpo", None, None, None)),
    ],
)
def test_axolotl_s_rl_is_a_trainer(tmp_path: Path, changes: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = read(tmp_path, AXOLOTL, **changes)
    run = found.run
    assert (run.trainer, run.loss_type, run.beta, run.precompute_ref_log_probs) == expected
    assert not run.packing and "rl" in found.used
    assert any("before 1.15 it takes more" in note for note in found.notes)
    assert resolve(LLAMA, run).run.padding


@pytest.mark.parametrize(("stage", "trainer"), [("dpo", "trl-dpo"), ("kto", "trl-kto"), ("rm", "trl-reward")])
def test_llama_factory_s_stage_is_a_trainer_whose_losses_hold_more(tmp_path: Path, stage: str, trainer: str) -> None:
    found = read(tmp_path, FACTORY, stage=stage, pref_beta=0.2)
    assert found.run.trainer == trainer
    assert found.run.beta == (None if stage == "rm" else 0.2)
    assert list(found.not_modelled) == ["stage"] and found.unmodelled[0].at_most is None


def test_llama_factory_s_loss_orpo_is_trl_s_trainer_of_it(tmp_path: Path) -> None:
    found = read(tmp_path, FACTORY, stage="dpo", pref_loss="orpo", pref_beta=0.2)
    assert (found.run.trainer, found.run.beta, found.run.upcast) == ("trl-orpo", 0.2, None)
    assert list(found.not_modelled) == ["stage"] and "pref_loss" in found.used
    assert not [problem for problem in resolve(LLAMA, found.run).problems if problem.blocking]


def test_a_loss_without_a_reference_is_named(tmp_path: Path) -> None:
    assert "pref_loss" in read(tmp_path, FACTORY, stage="dpo", pref_loss="simpo").not_modelled
    assert "pref_loss" in read(tmp_path, FACTORY, stage="dpo", pref_loss="hinge").used


@pytest.mark.parametrize(
    "options",
    [
        {"trainer": "trl-dpo", "loss_type": "ipo", "beta": 0.2},
        {"trainer": "trl-dpo", "precompute_ref_log_probs": True, "seq_len": 1024},
        {"trainer": "trl-kto", "batch_size": 4},
        {"trainer": "trl-orpo", "beta": 0.3},
    ],
)
def test_axolotl_reads_back_what_is_written(tmp_path: Path, options: dict[str, Any]) -> None:
    run, document = planned(**options)
    path = tmp_path / "axolotl.yaml"
    path.write_text(export("axolotl", document, data="pairs.jsonl"))
    raw = yaml.safe_load(path.read_text())
    kind = raw["datasets"][0]["type"]
    assert {"dpo": "field_chosen", "kto": "field_label", "orpo": "chat_template.argilla"}[raw["rl"]] in kind
    again = resolve(LLAMA, read_config(path).run).run
    for name in ("trainer", "beta", "precompute_ref_log_probs", "seq_len", "batch_size", "rank", "loss_type"):
        assert getattr(again, name) == getattr(run, name), name


def test_llama_factory_is_written_with_its_stage(tmp_path: Path) -> None:
    _, document = planned(trainer="trl-dpo", loss_type="hinge", beta=0.3)
    raw = yaml.safe_load(export("llama-factory", document, data="pairs.jsonl"))
    assert (raw["stage"], raw["pref_beta"], raw["pref_loss"]) == ("dpo", 0.3, "hinge")
    _, document = planned(trainer="trl-orpo", beta=0.2)
    raw = yaml.safe_load(export("llama-factory", document, data="pairs.jsonl"))
    assert (raw["stage"], raw["pref_beta"], raw["pref_loss"]) == ("dpo", 0.2, "orpo")


@pytest.mark.parametrize("trainer", ["trl-reward", "trl-grpo"])
def test_what_axolotl_has_no_word_for_is_not_written_as_something_else(trainer: str) -> None:
    _, document = planned(trainer=trainer)
    with pytest.raises(InputError, match=f"{trainer} is not written as an axolotl config"):
        export("axolotl", document, data="pairs.jsonl")


@pytest.mark.parametrize(
    ("trainer", "first"), [("trl-dpo", "1.15"), ("trl-kto", "1.15"), ("trl-reward", "1.7"), ("trl-orpo", "1.16")]
)
def test_an_older_trl_is_refused_by_name(trainer: str, first: str) -> None:
    run = RunConfig(trainer=trainer, batch_size=2, stack={"trl": "1.6"})
    (problem,) = [one for one in resolve(LLAMA, run).problems if one.blocking]
    assert (problem.code, problem.fix) == ("stack-refused", f"--stack trl={first}")
