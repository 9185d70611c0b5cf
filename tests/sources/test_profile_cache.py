"""The cache of built profiles: whole files or none, damage told once, a folder that refuses is no reason to stop."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlora_planner.sources.profile_cache import PROFILE_PACKAGES, ProfileCache, cache_key, installed_versions

from .conftest import VERSIONS, make_profile

SHA = "ab" * 32


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, told: list[str]) -> ProfileCache:
    return ProfileCache(tmp_path / "deep" / "profiles", told.append)


def test_what_is_stored_is_loaded(cache: ProfileCache, told: list[str]) -> None:
    key = cache_key(SHA, VERSIONS)
    assert cache.load(key) is None
    path = cache.store(make_profile())
    assert path == cache.folder / f"{key}.json"
    assert cache.load(key) == replace(make_profile(), source="cache")
    assert [file.name for file in cache.folder.iterdir()] == [f"{key}.json"]
    assert told == []


def test_other_versions_are_another_profile(cache: ProfileCache) -> None:
    cache.store(make_profile())
    for package in PROFILE_PACKAGES:
        assert cache.load(cache_key(SHA, {**VERSIONS, package: "2.0"})) is None
    assert cache_key(SHA, {**VERSIONS, "numpy": "2.0"}) == cache_key(SHA, VERSIONS)


def test_the_newest_is_found_without_versions(cache: ProfileCache) -> None:
    assert cache.newest(SHA) is None
    old = cache.store(make_profile())
    new = cache.store(replace(make_profile(), versions={**VERSIONS, "torch": "2.0"}))
    cache.store(make_profile("org/other", "cd" * 32))
    assert old is not None and new is not None
    os.utime(old, (1, 1))
    found = cache.newest(SHA)
    assert found is not None and found.versions["torch"] == "2.0"
    new.write_text("damaged")
    found = cache.newest(SHA)
    assert found is not None and found.versions["torch"] == "1.0"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[]", b'{"schema": "other/9"}'])
def test_damage_is_told_once_and_mended(cache: ProfileCache, told: list[str], content: bytes) -> None:
    path = cache.store(make_profile())
    assert path is not None
    path.write_bytes(content)
    key = cache_key(SHA, VERSIONS)
    assert cache.load(key) is None
    assert cache.load(key) is None
    assert len(told) == 1
    assert str(path) in told[0] and told[0].endswith("will be built again") and told[0].isprintable()
    cache.store(make_profile())
    assert cache.load(key) is not None
    assert len(told) == 1


def test_a_file_of_another_model_is_not_believed(cache: ProfileCache, told: list[str]) -> None:
    path = cache.store(make_profile("org/other", "cd" * 32))
    assert path is not None
    path.rename(cache.folder / f"{cache_key(SHA, VERSIONS)}.json")
    assert cache.load(cache_key(SHA, VERSIONS)) is None
    assert "another model's profile" in told[0]


def test_a_folder_that_cannot_be_written_is_told_and_passed_over(tmp_path: Path, told: list[str]) -> None:
    (tmp_path / "file").touch()
    cache = ProfileCache(tmp_path / "file", told.append)
    assert cache.store(make_profile()) is None
    assert cache.store(make_profile()) is None
    assert cache.load(cache_key(SHA, VERSIONS)) is None
    assert cache.newest(SHA) is None
    assert len(told) == 1
    assert "cannot be kept" in told[0]


def test_a_full_disk_leaves_nothing_behind(
    cache: ProfileCache, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert cache.store(make_profile()) is None
    assert list(cache.folder.iterdir()) == []
    assert "No space left on device" in told[0]


def test_versions_are_read_without_importing() -> None:
    assert set(installed_versions()) <= set(PROFILE_PACKAGES)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_garbage_never_stops_a_run(tmp_path: Path, content: bytes) -> None:
    told: list[str] = []
    cache = ProfileCache(tmp_path, told.append)
    (tmp_path / f"{cache_key(SHA, VERSIONS)}.json").write_bytes(content)
    assert cache.load(cache_key(SHA, VERSIONS)) is None
    assert all(text.isprintable() for text in told)
