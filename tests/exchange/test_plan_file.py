"""A plan file gives back the document it was written from, and says everything that is wrong with it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_planner.errors import InputError
from qlora_planner.exchange.plan_file import SECTIONS, read_plan, render_plan_file, write_plan
from qlora_planner.spec.run import RunConfig


def test_round_trip(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write_plan(document, path)
    found = read_plan(path)
    assert found.document == document
    assert found.run == RunConfig.from_dict(document["run"])
    assert (found.model_id, found.gpu) == ("meta-llama/Llama-3.1-8B", document["gpu"])


def test_what_one_may_change_is_in_the_plan_and_the_rest_beside_it(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    assert write_plan(document, path) == [path, tmp_path / "plan.figures.json"]
    held = yaml.safe_load(path.read_text())
    assert held == {name: document[name] for name in ("schema", "model", "gpu", "run")} | {
        "figures": "plan.figures.json"
    }
    assert len(path.read_text().splitlines()) < 100
    (tmp_path / "plan.figures.json").unlink()
    alone = read_plan(path)
    assert alone.run == RunConfig.from_dict(document["run"])
    assert "estimate" not in alone.document


def test_a_plan_of_before_that_holds_its_figures_itself_is_read(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(render_plan_file(document))
    assert read_plan(path).document == document


def test_figures_of_another_plan_are_not_taken_for_its_own(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write_plan(document, path)
    for old, new in (("meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-7B"), (f"name: {document['gpu']['name']}", "name: t4")):
        (tmp_path / "other.yaml").write_text(path.read_text().replace(old, new))
        assert "estimate" not in read_plan(tmp_path / "other.yaml").document


@pytest.mark.parametrize(
    ("figures", "content", "says"),
    [
        ("../secret.json", None, "figures must be the name of a file beside it"),
        ("/etc/passwd", None, "figures must be the name of a file beside it"),
        ("plan.figures.json", "{", "plan.figures.json: is no YAML"),
        ("plan.figures.json", '{"schema": "other"}', "is no file of figures"),
        ("plan.yaml", None, "is no file of figures"),
    ],
)
def test_a_file_of_figures_that_is_none_is_named(
    document: dict[str, Any], tmp_path: Path, figures: str, content: str | None, says: str
) -> None:
    path = tmp_path / "plan.yaml"
    write_plan(document, path)
    path.write_text(path.read_text().replace("figures: plan.figures.json", f"figures: {figures}"))
    if content is not None:
        (tmp_path / "plan.figures.json").write_text(content)
    with pytest.raises(InputError, match=says):
        read_plan(path)


def test_nothing_is_written_over_and_neither_file_alone(document: dict[str, Any], tmp_path: Path) -> None:
    path, beside = tmp_path / "plan.yaml", tmp_path / "plan.figures.json"
    for there in (path, beside):
        there.write_text("mine")
        with pytest.raises(InputError, match="--force"):
            write_plan(document, path)
        assert [one.name for one in tmp_path.iterdir()] == [there.name]
        there.unlink()
    write_plan(document, path)
    write_plan(document, path, force=True)


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
