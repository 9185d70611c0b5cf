"""A plan file gives back the document it was written from, and says everything that is wrong with it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_planner.errors import InputError
from qlora_planner.exchange.plan_file import SECTIONS, read_plan, render_plan_file, write_plan
from qlora_planner.run import RunConfig


def test_round_trip(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write_plan(document, path)
    found = read_plan(path)
    assert found.document == document
    assert found.run == RunConfig.from_dict(document["run"])
    assert (found.model_id, found.gpu) == ("meta-llama/Llama-3.1-8B", document["gpu"])


def test_awkward_values_survive(document: dict[str, Any], tmp_path: Path) -> None:
    document["run"] |= {
        "target_modules": "q_proj, v_proj: # no comment",
        "modules_to_save": "{x}",
        "lora_dropout": 1e-05,
        "stack": {"trl": "1.13", "torch": "2.11"},
    }
    document["data"] = {"path": "a\nb.jsonl", "quantiles": [1, 2.5, None, True], "name": "no"}
    write_plan(document, tmp_path / "plan.yaml")
    assert read_plan(tmp_path / "plan.yaml").document == document


def test_comments_explain(document: dict[str, Any]) -> None:
    lines = render_plan_file(document).splitlines()
    assert lines[0].startswith("# qlora of meta-llama/Llama-3.1-8B on 24GB card: peak ")
    for name in set(SECTIONS) & set(document):
        place = next(index for index, line in enumerate(lines) if line.startswith(f"{name}:"))
        assert lines[place - 1] == f"# {SECTIONS[name]}"
    why = document["estimate"]["resolved"]
    assert why
    for option, reason in why.items():
        assert any(line.startswith(f"  {option}: ") and line.endswith(f"  # {reason}") for line in lines)


def test_a_comment_never_becomes_data(document: dict[str, Any]) -> None:
    document["model"]["id"] = "x\ninjected: true\n#"
    document["estimate"]["resolved"]["quant"] = "y\ninjected: true"
    assert yaml.safe_load(render_plan_file(document)) == document


def test_every_fault_is_named(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    document["schema"] = "qlora-plan/plan/9"
    document["model"] = {"id": 7}
    document["gpu"] = "rtx-4090"
    document["run"] |= {"rank": 0, "seq_len": "long", "colour": "red"}
    path.write_text(render_plan_file(document))
    with pytest.raises(InputError) as caught:
        read_plan(path)
    for part in (str(path), "plan/9", "model.id", "gpu.name", "colour"):
        assert part in str(caught.value)
    del document["run"]["colour"]
    path.write_text(render_plan_file(document))
    with pytest.raises(InputError, match=r"--seq-len must be int.*--rank must be from 1"):
        read_plan(path)


def test_a_plan_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("schema: qlora-plan/plan/1\nmodel: {id: llama-3.1-8b}\nrun: {rank: 8}\n")
    found = read_plan(path)
    assert (found.model_id, found.gpu, found.run) == ("llama-3.1-8b", None, RunConfig(rank=8))
