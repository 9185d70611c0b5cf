"""Hub datasets out of the cache of Hub files, with the network off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_planner.data.files import find_files
from qlora_planner.data.hub import rows_of
from qlora_planner.errors import InputError, MissingError

Cached = Callable[..., Path]
LINE = '{"text": "one"}\n'


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cached:
    """Put files of a dataset where huggingface_hub would have them; `[]` in the path must not be a pattern."""
    hub = tmp_path / "hub[1]"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    def put(repo_id: str, *names: str) -> Path:
        repo = hub / f"datasets--{repo_id.replace('/', '--')}"
        snapshot = repo / "snapshots" / ("a" * 40)
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text("a" * 40)
        for name in names:
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).write_text(LINE)
        return snapshot

    return put


def test_the_training_files_alone(cached: Cached) -> None:
    snapshot = cached("org/set", "data/train-00000.jsonl", "data/train-00001.jsonl", "data/test-0.jsonl", "README.md")
    files = [file.path for file in find_files(rows_of("org/set"))]
    assert files == [snapshot / "data" / "train-00000.jsonl", snapshot / "data" / "train-00001.jsonl"]


def test_everything_where_nothing_is_called_train(cached: Cached) -> None:
    snapshot = cached("org/set", "a.jsonl", "b.jsonl", "dataset_infos.json")
    assert [file.path for file in find_files(rows_of("org/set"))] == [snapshot / "a.jsonl", snapshot / "b.jsonl"]


@pytest.mark.fault(
    "a Hub dataset with several sets",
    said="holds 2 sets; name one, as --data org/set/main, org/set/socratic",
    exit=2,
    part="before",
)
def test_one_of_several_sets(cached: Cached) -> None:
    snapshot = cached("org/set", "main/train.jsonl", "socratic/train.jsonl", "main/test.jsonl")
    with pytest.raises(InputError, match="holds 2 sets; name one, as --data org/set/main, org/set/socratic"):
        rows_of("org/set")
    assert [file.path for file in find_files(rows_of("org/set/main"))] == [snapshot / "main" / "train.jsonl"]


@pytest.mark.fault(
    "a Hub dataset that is not cached, network off",
    said="no data files among the cached Hub files, and HF_HUB_OFFLINE",
    exit=3,
    part="before",
)
def test_what_is_not_there_and_what_holds_nothing(cached: Cached) -> None:
    with pytest.raises(MissingError, match="no/where: no data files among the cached Hub files, and HF_HUB_OFFLINE"):
        rows_of("no/where")
    cached("org/pictures", "a.png")
    with pytest.raises(MissingError, match="no data files among"):
        rows_of("org/pictures")


def test_what_is_here_stays_what_it_is(cached: Cached, tmp_path: Path) -> None:
    (tmp_path / "org" / "set").mkdir(parents=True)
    for name in ("org/set", "train.jsonl", "data/train.jsonl", "data/*.jsonl", "name", "/tmp/some/where"):
        assert rows_of(name) == name
