"""The trainer's own reporters: known to work before a run begins, and writing into its folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_planner.errors import MissingError
from qlora_planner.runs.child.reporters import check_reporters, set_places
from qlora_planner.runs.directory import RunDirectory


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of that name that can be imported, and a home without a login; afterwards it is gone again."""
    known = sys.modules.pop("wandb", None)
    package = tmp_path / "wandb.py"
    package.write_text("run = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    yield package
    sys.modules.pop("wandb", None)
    if known is not None:
        sys.modules["wandb"] = known


@pytest.mark.fault(
    "a reporter that cannot be imported", said="--report-to wandb: cannot be imported", exit=3, part="before"
)
def test_a_package_that_is_broken(wandb: Path) -> None:
    wandb.write_text("import opentelemetry_that_nobody_has\n")
    with pytest.raises(MissingError, match=r"--report-to wandb: cannot be imported \(No module named 'opentelemetry"):
        check_reporters(["wandb"])


@pytest.mark.fault(
    "wandb without a login", said="not logged in; `wandb login`, or set WANDB_MODE=offline", exit=3, part="before"
)
def test_nobody_is_logged_in(wandb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match="not logged in; `wandb login`, or set WANDB_MODE=offline"):
        check_reporters(["wandb"])
    netrc = wandb.with_name(".netrc")
    netrc.write_text("machine api.wandb.ai\n  login user\n  password 123\n")
    netrc.chmod(0o600)
    check_reporters(["wandb"])
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(MissingError, match="not logged in"):
        check_reporters(["wandb"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_reporters(["wandb"])


def test_reporters_write_beside_the_run_and_wandb_goes_on_with_one_run(tmp_path: Path) -> None:
    first: dict[str, str] = {"WANDB_NAME": "mine"}
    again: dict[str, str] = {}
    for environment in (first, again):
        set_places(["tensorboard", "wandb"], RunDirectory(tmp_path / "run"), environment)
    logs = str(tmp_path / "run" / "logs")
    assert first["TENSORBOARD_LOGGING_DIR"] == first["WANDB_DIR"] == logs
    assert (first["WANDB_NAME"], again["WANDB_NAME"]) == ("mine", "run")
    assert first["WANDB_RUN_ID"] == again["WANDB_RUN_ID"] and len(first["WANDB_RUN_ID"]) == 8
    untouched: dict[str, str] = {}
    set_places([], RunDirectory(tmp_path), untouched)
    assert untouched == {}
