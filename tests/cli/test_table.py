"""The two tables: figures that are the estimate's own, and the README's copies."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from qlora_planner import session
from qlora_planner.session.surveying.tables import TablesAnswer, size_tables
from qlora_planner.spec.run import RunConfig
from tests.cli.conftest import Invoke
from tools.readme import PAGES, regenerated, sections

ROOT = Path(__file__).parents[2]


def test_pages_hold_what_the_program_says_now() -> None:
    texts = {
        page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES
    }  # in one test: their tables are made once
    stale = [page for page, text in texts.items() if regenerated(text, sections(page), page) != text]
    assert stale == [], "`make tables` writes them again"


def test_the_readme_is_a_page_of_at_most_130_lines_that_begins_with_the_two_set_up_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    commands = text.split("```console\n")[1].splitlines()[:2]
    assert commands == ["pip install . && qlora-plan --gpu 24GB", "pip install '.[train,test]' && pytest"]
    assert text.index("docs/screenshots/turn.svg") < text.index("\n## ")


def test_the_readme_names_every_page_of_docs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in text]
    assert missing == []


def test_figures_are_those_of_estimate(invoke: Invoke) -> None:
    done = invoke("table", "--models", "qwen2.5-7b,Qwen3-30B-A3B", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    row, experts = document["memory"]
    profile = session.load_model("qwen2.5-7b")
    traced = session.estimate(profile, RunConfig())
    assert row["figures"]["qlora-4bit"] == {
        "device_bytes": traced.peak.device_bytes, "basis": "traced", "refused": None,
    }  # fmt: skip
    formed = session.estimate(profile, RunConfig(method="lora", quant="none"))
    assert row["figures"]["lora"]["device_bytes"] == formed.peak.device_bytes
    assert row["figures"]["lora"]["basis"] == "traced"
    # Fused experts stay as they are: nearly nothing is saved, and an upcast would double them.
    assert experts["weights_16bit_bytes"] < 1.1 * experts["weights_4bit_bytes"]
    assert experts["upcast_weights_bytes"] > 0.9 * experts["weights_4bit_bytes"]
    assert [card["gpu"] for card in document["cards"]][::12] == ["8GB", "141GB"]


def test_larger_cards_hold_no_smaller_models(invoke: Invoke) -> None:
    document = json.loads(invoke("table", "--models", "qwen2.5-0.5b", "--json").stdout)
    for method in ("full", "lora", "qlora-8bit", "qlora-4bit"):
        sizes = [card["largest"][method]["params"] for card in document["cards"]]
        assert sizes == sorted(sizes)
    for card in document["cards"]:
        for found in (*card["largest"].values(), *card["perhaps"].values()):
            assert found is None or found["device_bytes"] <= card["usable_bytes"] * 1.01


def test_csv_and_markdown_have_every_figure(invoke: Invoke) -> None:
    args = ("table", "--models", "qwen2.5-0.5b", "--seq-len", "1024")
    rows = list(csv.DictReader(io.StringIO(invoke(*args, "--csv").stdout)))
    of_model = [row for row in rows if row["table"] == "memory"]
    assert [row["method"] for row in of_model][:4] == ["full", "lora", "qlora-8bit", "qlora-4bit"]
    assert all(int(row["bytes"]) > 0 for row in rows)
    text = invoke(*args, "--markdown").stdout
    assert "1 x 1,024 tokens" in text
    assert "| Qwen2.5-0.5B (0.5B) |" in text


def test_bad_input(invoke: Invoke) -> None:
    for args in (
        ("--models", ","),
        ("--models", "gpt2", "--seq-len", "4096"),
        ("--json", "--markdown"),
    ):
        done = invoke("table", *args)
        assert done.exit_code == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_myths_have_the_figures_of_estimate(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_two(mine: session.Session, _models: None, run: RunConfig, *, cards: bool) -> TablesAnswer:
        return size_tables(mine, ["qwen2.5-7b", "Qwen3-30B-A3B"], run, cards=cards)

    monkeypatch.setattr("qlora_planner.session.surveying.tables.size_tables", of_two)
    document = json.loads(invoke("myths", "--json").stdout)
    figures = {row["advice"]: row["figures"] for row in document["myths"]}
    assert [*figures] == [
        "7B needs 6 GB", "Always call prepare_model_for_kbit_training", "4-bit divides memory by four", "",
    ]  # fmt: skip
    needs = session.estimate(session.load_model("qwen2.5-7b"), RunConfig()).peak.device_bytes
    assert f"Qwen2.5-7B needs {needs / (1 << 30):.2f} GiB" in figures["7B needs 6 GB"]
    assert "Qwen3-30B-A3B" in figures["4-bit divides memory by four"]
