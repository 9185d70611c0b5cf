"""Weights that AWQ, GPTQ and others have quantised: no answer says that a run of something else fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_planner import RunConfig, estimate, load_gpu, load_model, plan
from qlora_planner.spec.codec import profile_to_dict
from qlora_planner.spec.model import ModelProfile
from tests.cli.conftest import Invoke

SCHEMES = ("awq", "gptq", "hqq", "eetq", "compressed-tensors", "fp8", "mxfp4", "quip3")
CARD = load_gpu("24GB")


def stored(scheme: str, name: str = "llama-3.2-1b") -> ModelProfile:
    return replace(load_model(name), id=f"org/{scheme}", checkpoint_quantization=scheme, config_sha256="0" * 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for --profiles whose one model is stored in AWQ."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "org__awq.json").write_text(json.dumps(profile_to_dict(stored("awq"))))
    return tmp_path


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_run_on_weights_of_another_quantiser_will_not_run(scheme: str) -> None:
    answer = estimate(stored(scheme), RunConfig(), CARD)
    assert answer.verdict == "will-not-run"
    assert answer.fit is not None
    assert answer.fit.probability_oom is None
    assert "the checkpoint is stored" in answer.fit.reasons[0]
    assert "bf16 copy" in answer.fit.reasons[0]


@pytest.mark.parametrize("scheme", ["bitsandbytes-nf4-double", "bitsandbytes-8bit"])
def test_weights_that_bitsandbytes_stored_still_fit(scheme: str) -> None:
    assert estimate(stored(scheme), RunConfig(), CARD).verdict == "fits"


def test_plain_lora_is_told_that_packed_weights_are_not_modelled() -> None:
    answer = estimate(stored("awq"), RunConfig(method="lora"), CARD)
    assert answer.fit is not None
    assert answer.verdict == "will-not-run"
    assert "not modelled here" in answer.fit.reasons[0]


def test_a_plan_for_them_recommends_nothing() -> None:
    found = plan(stored("gptq"), CARD)
    assert found.estimate.verdict == "will-not-run"
    assert (found.prices, found.alternatives, found.frontier, found.ladder) == ((), (), (), ())


def test_without_a_card_it_is_no_figure_to_plan_by(invoke: Invoke, folder: Path) -> None:
    result = invoke("estimate", "org/awq", "--profiles", str(folder))
    assert result.exit_code == 1
    assert result.stdout.startswith("⊘ will not run: org/awq\n")


@pytest.mark.parametrize("verb", [["estimate"], ["plan"]])
@pytest.mark.fault(
    "weights of another tool in `plan`, `estimate`, `check`, the survey",
    said="will not run",
    does="`the checkpoint is stored in AWQ ...; use a bf16 copy`",
    exit=1,
    part="before",
)
def test_every_verb_says_so_at_the_head(invoke: Invoke, folder: Path, verb: list[str]) -> None:
    result = invoke(*verb, "org/awq", "--gpu", "24GB", "--profiles", str(folder))
    assert result.exit_code == 1
    head = result.stdout.split("\n\n")[0]
    assert head.startswith("⊘ will not run: org/awq on 24GB")
    assert "the memory of a bf16 copy of the model" in head
    assert "fits" not in result.stdout
    assert "--save" not in result.stdout


def test_the_survey_says_so_too(invoke: Invoke, folder: Path) -> None:
    result = invoke("--gpu", "24GB", "--json", "--profiles", str(folder))
    rows: dict[str, Any] = {row["model_id"]: row for row in json.loads(result.stdout)["models"]}
    assert rows["org/awq"]["verdict"] == "will-not-run"
    assert rows["org/awq"]["recommended"] is None
    assert "stored in AWQ" in rows["org/awq"]["note"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llama-factory.yaml", "stage: sft\nfinetuning_type: lora\nlora_target: all\nmodel_name_or_path: org/awq\n"),
        (
            "axolotl.yaml",
            "base_model: org/awq\nadapter: qlora\nload_in_4bit: true\nlora_target_linear: true\n"
            "lora_r: 8\nsequence_len: 512\nmicro_batch_size: 1\ngradient_accumulation_steps: 1\nbf16: true\n",
        ),
    ],
)
def test_a_config_of_another_tool_that_names_them_is_not_said_to_fit(
    invoke: Invoke, folder: Path, name: str, text: str
) -> None:
    file = folder / name
    file.write_text(text)
    result = invoke("check", str(file), "--gpu", "80GB", "--profiles", str(folder))
    assert result.exit_code == 1
    assert result.stdout.startswith("⊘ will not run: org/awq")


def test_a_report_of_such_a_plan_shows_no_command_to_run(invoke: Invoke, folder: Path) -> None:
    report = folder / "report.md"
    invoke("plan", "org/awq", "--gpu", "24GB", "--profiles", str(folder), "--report", str(report))
    text = report.read_text()
    assert "Will not run" in text
    assert "qlora-plan train" not in text
