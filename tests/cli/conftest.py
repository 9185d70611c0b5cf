"""The program as people run it: in this process through click's runner, and as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click.testing
import pytest

from qlora_planner.cli.main import cli

ROOT = Path(__file__).parents[2]
Invoke = Callable[..., click.testing.Result]
Process = Callable[..., subprocess.CompletedProcess[str]]

# Whatever the machine that runs the tests has set, must not decide them.
_OURS = ("NO_COLOR", "QLORA_PLANNER_PROFILES", "QLORA_PLAN_DEBUG", "PYTHONIOENCODING", "COLUMNS", "FORCE_COLOR")


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees, or writes, what the user has, and none asks the Hub."""
    home = tmp_path_factory.mktemp("home")
    for variable, folder in (("HOME", ""), ("XDG_DATA_HOME", "data"), ("XDG_CACHE_HOME", "cache"), ("HF_HOME", "hf")):
        monkeypatch.setenv(variable, str(home / folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for variable in _OURS:
        monkeypatch.delenv(variable, raising=False)
    yield


@pytest.fixture
def invoke() -> Invoke:
    """Run the program in this process; stdout and stderr are apart."""

    def run(*args: str) -> click.testing.Result:
        return click.testing.CliRunner().invoke(cli, list(args), prog_name="qlora-plan")

    return run


@pytest.fixture
def process() -> Process:
    """Run the program as its console script does: the working directory is not among the modules."""

    def run(*args: str, folder: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            (sys.executable, "-P", "-m", "qlora_planner", *args), cwd=folder,
            capture_output=True, encoding="utf-8",
            env={**os.environ, "PYTHONUTF8": "1", "PYTHONPATH": str(ROOT), **env}, timeout=120,
        )  # fmt: skip

    return run


@pytest.fixture
def python() -> Process:
    """Run a Python text in a process of its own."""

    def run(text: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            (sys.executable, "-c", text), capture_output=True, encoding="utf-8", env={**os.environ, **env}, timeout=120
        )

    return run


@pytest.fixture
def bad_config(tmp_path: Path) -> Callable[[str], str]:
    """Write a config.json and give its path."""

    def write(text: str) -> str:
        path = tmp_path / "config.json"
        path.write_text(text)
        return str(path)

    return write
