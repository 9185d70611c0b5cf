"""The line that installs an extra works from where the user stands, however this package came here."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qlora_planner import installing
from qlora_planner.installing import install_line, install_packages


class Distribution:
    """An installed distribution with pip's record of where it came from."""

    def __init__(self, record: object) -> None:
        self.record = record

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.record is None else json.dumps(self.record)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    def come_from(record: object) -> None:
        monkeypatch.setattr("importlib.metadata.distribution", lambda name: Distribution(record))
        monkeypatch.setattr(sys, "prefix", "/home/me/venv")

    return come_from


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "my clone"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    return folder


def test_from_a_clone_the_line_names_it_wherever_one_stands(
    installed: Any, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed({"url": clone.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.chdir(clone.parent)
    assert shlex.split(install_line("train")) == ["pip", "install", "-e", f"{clone}[train]"]
    monkeypatch.chdir(clone)
    assert install_line("data") == "pip install -e '.[data]'"
    installed({"url": clone.as_uri(), "dir_info": {}})
    assert install_line("train") == "pip install '.[train]'"


def test_a_clone_that_is_gone_is_not_named(installed: Any, tmp_path: Path) -> None:
    installed({"url": (tmp_path / "gone").as_uri(), "dir_info": {"editable": True}})
    assert install_line("train") == "pip install '.[train]'   (in a clone of qlora-planner)"


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            {"url": "https://example.org/q.git", "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
            "pip install 'qlora-planner[train] @ git+https://example.org/q.git@abc123'",
        ),
        (
            {"url": "https://example.org/q-0.1.0-py3-none-any.whl", "archive_info": {}},
            "pip install 'qlora-planner[train] @ https://example.org/q-0.1.0-py3-none-any.whl'",
        ),
    ],
)
def test_from_a_repository_or_an_archive_it_is_taken_again(installed: Any, record: object, line: str) -> None:
    installed(record)
    assert install_line("train") == line


def test_from_a_wheel_on_disk(installed: Any, tmp_path: Path) -> None:
    wheel = tmp_path / "qlora_planner-0.1.0-py3-none-any.whl"
    wheel.touch()
    installed({"url": wheel.as_uri(), "archive_info": {}})
    assert install_line("train") == f"pip install '{wheel}[train]'"


@pytest.mark.parametrize("record", [None, [], {"url": 7}])
def test_without_a_record_it_comes_from_an_index_or_runs_from_its_clone(installed: Any, record: object) -> None:
    installed(record)
    clone = Path(installing.__file__).resolve().parents[1]
    place = "." if Path.cwd().resolve() == clone else clone
    assert install_line("train") == f"pip install -e '{place}[train]'"


def test_pipx_installs_into_its_own_environment(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed({"url": "https://example.org/q.whl"})
    monkeypatch.setattr(sys, "prefix", "/home/me/.local/share/pipx/venvs/qlora-planner")
    assert install_line("train").startswith("pipx runpip qlora-planner install 'qlora-planner[train] @ ")


def test_what_no_extra_has_gets_a_line_of_its_own(installed: Any) -> None:
    installed({"url": "https://example.org/q.whl"})
    assert install_packages(["liger_kernel"]) == "pip install liger-kernel"
    assert install_packages(["trl", "liger_kernel"]) == f"{install_line('train')} and pip install liger-kernel"


def test_the_line_for_this_very_installation_is_one_that_pip_takes() -> None:
    pytest.importorskip("pip")
    words = shlex.split(install_line("train"))
    assert words[:2] == ["pip", "install"]
    done = subprocess.run(
        [sys.executable, "-m", *words, "--dry-run", "--no-deps", "--no-build-isolation", "--quiet"],
        capture_output=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_works_with_older_libraries_gets_an_environment_of_its_own(installed: Any) -> None:
    installed(None)
    line = install_packages(["unsloth", "unsloth_zoo", "datasets"])
    assert line.startswith("in an environment of its own: python3 -m venv unsloth-env && unsloth-env/bin/pip install ")
    assert "[unsloth]" in line and "[train]" not in line
