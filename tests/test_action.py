"""The GitHub Action: its script on ten files, and that its steps hand over what the script reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from action.check_files import main

ROOT = Path(__file__).parents[1]
TRL = yaml.safe_load((ROOT / "examples" / "trl-sft.yaml").read_text(encoding="utf-8"))
# Ten configs: name -> what differs from a run that fits 12 GB, and the verdict there.
FILES: dict[str, tuple[dict[str, Any] | None, str]] = {
    "short": ({"max_length": 1024}, "fits"),
    "batch-1": ({"per_device_train_batch_size": 1}, "fits"),
    "rank-32": ({"per_device_train_batch_size": 1, "lora_r": 32}, "fits"),
    "small-model": ({"model_name_or_path": "Qwen/Qwen2.5-0.5B"}, "fits"),
    "larger-model": ({"model_name_or_path": "google/gemma-2-9b", "max_length": 512}, "fits"),
    "tight": ({"max_length": 3840}, "tight"),
    "long": ({"max_length": 16384}, "does-not-fit"),
    "too-large-a-model": ({"model_name_or_path": "Qwen/Qwen2.5-72B"}, "does-not-fit"),
    "unknown-model": ({"model_name_or_path": "no/such-model-at-all"}, "unreadable"),
    "no-config": (None, "unreadable"),
}


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QLORA_PLANNER_TRACE", "never")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "configs").mkdir()
    for name, (changes, _) in FILES.items():
        text = "just text" if changes is None else yaml.safe_dump({**TRL, **changes})
        (tmp_path / "configs" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return tmp_path


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {
        "FILES": "configs/*.yaml", "GPU": "12GB", "RISK": "5%", "CANNOT_SAY": "warn", "BADGE": "badge.json",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "GITHUB_OUTPUT": str(tmp_path / "output"), **more,
    }  # fmt: skip


def test_ten_files_are_reported_with_their_smallest_change(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--report", "report.md"], environment(configs)) == 1
    report = (configs / "report.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"^\| configs/([\w-]+)\.yaml \| ([\w-]+) \|", report, re.MULTILINE))
    assert found == {name: verdict for name, (_, verdict) in FILES.items()}
    assert re.search(r"long\.yaml \| does-not-fit \| .*`max_length: \d+", report)
    assert (configs / "summary.md").read_text(encoding="utf-8") == report
    assert (configs / "output").read_text(encoding="utf-8") == "verdict=unreadable\n"
    badge = json.loads((configs / "badge.json").read_text(encoding="utf-8"))
    assert badge == {"schemaVersion": 1, "label": "memory on 12GB", "message": "unreadable", "color": "red"}
    printed = capsys.readouterr().out
    assert printed.count("::error file=") == 4
    assert "::error file=configs/tight.yaml" not in printed


def test_files_that_fit_pass(configs: Path) -> None:
    assert main(["--report", "r.md"], environment(configs, FILES="configs/short.yaml\nconfigs/batch-*.yaml\n")) == 0
    assert json.loads((configs / "badge.json").read_text(encoding="utf-8"))["color"] == "brightgreen"


@pytest.mark.parametrize("wrong", [{"FILES": "none/*.yaml"}, {"FILES": ""}, {"GPU": "no-card"}, {"CANNOT_SAY": "x"}])
def test_inputs_that_are_wrong_are_one_line_and_no_report(
    configs: Path, wrong: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--report", "r.md"], environment(configs, **wrong)) == 2
    assert not (configs / "r.md").exists()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("::error::")


def test_the_action_hands_over_every_input_that_its_script_reads() -> None:
    action = yaml.safe_load((ROOT / "action" / "action.yml").read_text(encoding="utf-8"))
    (step,) = [step for step in action["runs"]["steps"] if step.get("id") == "check"]
    used = set(re.findall(r"inputs\.([\w-]+)", json.dumps(action["runs"])))
    assert used == set(action["inputs"])
    read = set(
        re.findall(
            r"environment(?:\.get\(|\[)\"([A-Z]+(?:_[A-Z]+)*)\"", (ROOT / "action" / "check_files.py").read_text()
        )
    )
    assert read - {"GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"} <= set(step["env"])
