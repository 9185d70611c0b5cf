"""The order in which folders are looked up, and folders that cannot be meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qlora_planner.errors import InputError
from qlora_planner.sources import locations


def made(root: Path, *kinds: str) -> Path:
    for kind in kinds or ("models", "gpus"):
        (root / kind).mkdir(parents=True)
    return root


def test_the_order_is_option_environment_user_repository(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = made(tmp_path / "a"), made(tmp_path / "b", "models"), made(tmp_path / "c", "measurements")
    monkeypatch.setenv("QLORA_PLANNER_PROFILES", os.pathsep.join((str(second), str(third))))
    user = made(own_home / "data" / "qlora-planner" / "profiles", "gpus")
    assert locations.profile_roots(first)[:4] == (first, second, third, user)
    assert locations.models_dirs(first)[:2] == (first / "models", second / "models")
    assert locations.gpus_dirs(first)[:2] == (first / "gpus", user / "gpus")


def test_the_packaged_copy_and_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = made(tmp_path / "site" / "qlora_planner" / "_profiles").parent
    monkeypatch.setattr(locations, "_PACKAGE", package)
    neighbour = made(tmp_path / "site" / "profiles")
    assert locations.profile_roots() == (package / "_profiles",)  # another project's folder in site-packages
    (tmp_path / "site" / "pyproject.toml").touch()
    assert locations.profile_roots() == (package / "_profiles", neighbour)
    assert locations.profile_roots(neighbour) == (neighbour, package / "_profiles")  # each once


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nope", "no such folder"),
        (".", "holds neither models/ nor gpus/"),
        ("a\0b", "--profiles: "),
        ("~nobody-x/y", "cannot be read"),
    ],
)
def test_a_folder_that_cannot_be_meant_is_refused(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        locations.profile_roots(name if name.startswith("~") else tmp_path / name)
    assert str(caught.value).startswith("--profiles: ")
    assert str(caught.value).isprintable()


def test_the_variable_is_named_when_it_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_PLANNER_PROFILES", str(tmp_path / "nope"))
    with pytest.raises(InputError, match="QLORA_PLANNER_PROFILES: no such folder"):
        locations.models_dirs()


def test_the_cache_is_the_users(own_home: Path) -> None:
    assert locations.cache_dir() == own_home / "cache" / "qlora-planner"
