"""What packages hold beside the code: the manual page, and a recipe that asks for what the project asks for."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from qlora_planner import __version__
from tools.manual import PAGE, manual

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_manual_page_is_what_the_program_declares() -> None:
    assert PAGE.read_text(encoding="utf-8") == manual(), "`make manual` writes it again"


def test_the_wheel_puts_the_manual_page_where_man_looks() -> None:
    shared = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert {(ROOT / path).resolve(): place for path, place in shared.items()} == {PAGE: "share/man/man1/qlora-plan.1"}


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")
def test_roff_finds_no_fault_in_the_manual_page() -> None:
    done = subprocess.run(
        ["groff", "-man", "-ww", "-z", "-K", "utf8", PAGE], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_the_recipe_asks_for_what_the_project_asks_for() -> None:
    recipe = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["context"]["version"] == __version__
    assert recipe["about"]["license"] == PROJECT["project"]["license"]
    asked = {f"python{PROJECT['project']['requires-python']}", *PROJECT["project"]["dependencies"]}
    run = {
        line.replace(" ", "", 1).replace("huggingface_hub", "huggingface-hub") for line in recipe["requirements"]["run"]
    }
    assert run == asked
    assert set(PROJECT["build-system"]["requires"]) <= {
        line.replace(" ", "") for line in recipe["requirements"]["host"]
    }
    commands = [line for test in recipe["tests"] for line in test.get("script", ())]
    assert "qlora-planner --version" in commands
