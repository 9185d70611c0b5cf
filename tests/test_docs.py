"""What the documents promise: links lead somewhere, commands run, and the sample of Python prints figures."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from qlora_planner import __version__
from qlora_planner.cli.main import EXIT_CODES, cli

ROOT = Path(__file__).parents[1]
GUARD = ROOT / "docs" / "ci-guard.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
AXOLOTL = {
    "base_model": "meta-llama/Llama-3.1-8B", "adapter": "qlora", "load_in_4bit": True, "sequence_len": 2048,
    "micro_batch_size": 1, "gradient_accumulation_steps": 4, "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True,
    "optimizer": "paged_adamw_8bit", "bf16": True, "gradient_checkpointing": True,
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    gone = [one for one in targets if "://" not in one and not (page.parent / one).exists()]
    assert gone == []


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_guards_table_holds_the_exit_codes_of_check() -> None:
    named = dict(re.findall(r"^\| (\d) \| ([^|]+?) \|", GUARD.read_text(encoding="utf-8"), re.MULTILINE))
    known = dict(EXIT_CODES)
    assert set(named) == {"0", "1", "2", "3", "5"} <= set(known)
    for code in ("1", "5"):
        assert named[code].split(",")[0].split(":")[0].split(";")[0] in known[code]


def test_the_guards_yaml_is_yaml_of_its_tool() -> None:
    action, workflow, hooks = (yaml.safe_load(text) for text in blocks(GUARD, "yaml"))
    inputs = yaml.safe_load((ROOT / "action" / "action.yml").read_text(encoding="utf-8"))["inputs"]
    assert set(action["jobs"]["fits"]["steps"][-1]["with"]) <= set(inputs)
    steps = workflow["jobs"]["fits"]["steps"]
    assert any("qlora-plan check" in step.get("run", "") for step in steps)
    assert hooks["repos"][0]["hooks"][0]["entry"].startswith("bash -c")


@pytest.mark.parametrize(("card", "code"), [("24GB", 0), ("6GB", 1)])
def test_every_check_of_the_guard_passes_what_fits_and_fails_what_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: str, code: int
) -> None:
    monkeypatch.setenv("QLORA_PLANNER_TRACE", "never")
    config = tmp_path / "llama.yml"
    config.write_text(yaml.safe_dump(AXOLOTL))
    text = GUARD.read_text(encoding="utf-8")
    found = re.findall(r"qlora-plan (check (?:\"\$\w+\"|\S+) --gpu \S+(?: --(?:quiet|json))?)", text)
    assert len(found) >= 4
    for command in found:
        words = [str(config) if "$" in one or one.endswith(".yml") else one.strip('"') for one in command.split()]
        words[words.index("--gpu") + 1] = card
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == code, result.stderr
        if "--json" in words:
            estimate = json.loads(result.stdout)["estimate"]
            assert estimate["peak"]["device_bytes"] > 0
            assert (estimate["fit"]["headroom_bytes"] > 0) == (code == 0)


def test_the_guards_shell_is_shell() -> None:
    _, workflow, hooks = (yaml.safe_load(text) for text in blocks(GUARD, "yaml"))
    scripts = [step["run"] for step in workflow["jobs"]["fits"]["steps"] if "run" in step]
    scripts += [*blocks(GUARD, "bash"), hooks["repos"][0]["hooks"][0]["entry"]]
    for script in scripts:
        assert subprocess.run(["bash", "-n", "-c", script], capture_output=True, timeout=30).returncode == 0, script


def test_the_python_page_prints_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    (sample,) = [
        text for text in blocks(ROOT / "docs" / "python.md", "python") if "import" in text and "Session" in text
    ]
    monkeypatch.setenv("QLORA_PLANNER_TRACE", "never")
    out = io.StringIO()
    space: dict[str, Any] = {}
    with contextlib.redirect_stdout(out):
        exec(compile(sample, "python.md", "exec"), space)
    printed = out.getvalue()
    assert printed.strip(), "the sample prints what it asks for"
    assert "None" not in printed
    assert space["best"].estimate.speed.tokens_per_s > 0


def test_what_the_readme_makes_is_ignored_by_git() -> None:
    paths = ["runs/toy/run.json", "toy/config.json", "train.jsonl", "plan.figures.json"]
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", *paths], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=30
    )
    if done.returncode == 128:
        pytest.skip("no git checkout")
    assert done.stdout.split() == paths


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == __version__
    assert cited["title"] == "qlora-planner"


def test_a_release_publishes_without_a_token_and_after_it_was_tried() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["needs"] == "try"
    assert set(jobs["try"]["needs"]) == {"sdist", "wheels"}
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert not any("password" in step.get("with", {}) for step in steps)
    scripts = "\n".join(step.get("run", "") for step in steps)
    assert (
        subprocess.run(
            ["bash", "-n", "-c", scripts.replace("${{", "${").replace("}}", "}").replace("matrix.kind", "K")],
            capture_output=True,
            timeout=30,
        ).returncode
        == 0
    )
