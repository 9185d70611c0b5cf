"""A plan that Python made is written as the command line writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_planner import Session
from qlora_planner.errors import InputError
from qlora_planner.session.views.planned import PlanAnswer

MODEL = "meta-llama/Llama-3.1-8B"


@pytest.fixture(scope="module")
def answer() -> PlanAnswer:
    return Session().on("rtx-4090").plan(MODEL, rank=32)


def test_a_plan_is_saved_and_read_back(answer: PlanAnswer, tmp_path: Path) -> None:
    path = answer.save(tmp_path / "plan.yaml")
    assert path == tmp_path / "plan.yaml" and (tmp_path / "plan.figures.json").is_file()
    checked = Session().check(path)
    assert (checked.verdict, checked.estimate.run) == (answer.verdict, answer.run)
    with pytest.raises(InputError, match="is there already"):
        answer.save(path)
    assert answer.save(path, force=True) == path


@pytest.mark.parametrize(("name", "begins"), [("plan.md", "# "), ("plan.html", "<!doctype html>")])
def test_a_report_is_written_in_the_form_of_its_name(
    answer: PlanAnswer, tmp_path: Path, name: str, begins: str
) -> None:
    text = answer.report(tmp_path / name).read_text(encoding="utf-8")
    assert text.lower().startswith(begins) and "Llama-3.1-8B" in text
    with pytest.raises(InputError, match=r"must end in \.md or \.html"):
        answer.report(tmp_path / "plan.pdf")


def test_a_limit_of_the_card_is_refused_on_the_cpu(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "hello"}) + "\n")
    with pytest.raises(InputError, match="--cap needs a card"):
        Session().on("24GB", cap="8GiB").train(MODEL, data=rows, device="cpu", output=tmp_path / "run")
