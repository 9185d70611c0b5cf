"""A checkpoint is trusted when its seal holds, and nothing else is ever taken away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_planner.runs.checkpoints import fault_of, newest_complete, optimizer_of, remove_old, seal, set_aside
from qlora_planner.runs.owned import mark_again
from qlora_planner.runs.seals import SEAL


def written(folder: Path, step: int, *, sealed: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "deeper").mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (path / "adapter_model.safetensors").write_bytes(bytes(range(256)))
    (path / "deeper" / "more.bin").write_bytes(b"x")
    if sealed:
        seal(path, optimizer="adamw_8bit")
    return path


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: None, None),
        (lambda path: (path / SEAL).unlink(), "was not finished"),
        (lambda path: (path / SEAL).write_text('{"files": '), "has a seal that cannot be read"),
        (lambda path: (path / SEAL).write_text('{"files": {}}'), "has a seal that names no trainer state"),
        (lambda path: (path / "deeper" / "more.bin").unlink(), "is damaged: deeper/more.bin is gone"),
        (lambda path: (path / "adapter_model.safetensors").write_bytes(b"\1" + bytes(range(1, 256))),
         "is damaged: adapter_model.safetensors is not what was saved"),
        (lambda path: (path / "trainer_state.json").write_text(""), "is damaged: trainer_state.json is not what"),
    ],
)  # fmt: skip
@pytest.mark.fault(
    "a damaged checkpoint",
    said="is damaged: adapter_model.safetensors is not what was saved",
    does="kept as `damaged-checkpoint-N`, the one before is taken",
    exit=0,
    part="resumed",
)
@pytest.mark.fault(
    "a checkpoint that was being written",
    said="was not finished",
    does="the one before is taken",
    exit=0,
    part="resumed",
)
def test_a_seal_holds_or_says_why_not(damage: object, says: str | None, tmp_path: Path) -> None:
    path = written(tmp_path, 4)
    damage(path)  # type: ignore[operator]
    assert (fault_of(path) or "").startswith(says) if says else fault_of(path) is None


@pytest.mark.parametrize(
    "text",
    [
        "[]", "null", "7", '"text"', '{"files": []}', '{"files": "all"}', '{"optimizer": 5, "files": {}}',
        '{"optimizer": "sgd", "files": {"trainer_state.json": 7}}', '{"optimizer": "sgd", "files": {"../x": "ab"}}',
        '{"optimizer": "sgd", "files": {"/etc/passwd": "ab"}}', '{"optimizer": "sgd", "files": {"a\\u0000": "ab"}}',
        '{"optimizer": "sgd", "files": {"": "ab"}}', "[" * 100_000, "\ufeff{}",
    ],
)  # fmt: skip
@pytest.mark.fault(
    "a seal that is none (cut off, other JSON, names outside the folder)",
    said="has a seal that cannot be read: passed over",
    does="kept as `damaged-checkpoint-N`",
    exit=0,
    part="resumed",
)
def test_a_seal_that_is_none_is_passed_over(text: str, tmp_path: Path) -> None:
    good, bad = written(tmp_path, 4), written(tmp_path, 9)
    (bad / SEAL).write_text(text)
    assert newest_complete(tmp_path) == (good, ["checkpoint-9 has a seal that cannot be read: passed over"])
    assert optimizer_of(bad) == ""
    set_aside(tmp_path, good)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "damaged-checkpoint-9"]


def test_a_seal_that_names_no_optimizer_is_passed_over(tmp_path: Path) -> None:
    bad = written(tmp_path, 9)
    (bad / SEAL).write_text(json.dumps({"files": json.loads((bad / SEAL).read_text())["files"]}))
    assert newest_complete(tmp_path) == (None, ["checkpoint-9 has a seal that names no optimizer: passed over"])


@pytest.mark.fault(
    "a file, a link, dangling or not, or a folder of somebody else's called `checkpoint-N`",
    said="is no folder: passed over",
    does="kept as `unknown-checkpoint-N`: the trainer would remove the oldest",
    exit=0,
    part="resumed",
)
def test_what_is_only_called_a_checkpoint_is_passed_over_and_kept(tmp_path: Path) -> None:
    """The trainer would go on from it, or remove it as the oldest one that it keeps."""
    folder = tmp_path / "checkpoints"
    good, elsewhere = written(folder, 4), written(tmp_path / "elsewhere", 6)
    (folder / "checkpoint-99").write_text("not a folder")
    (folder / "checkpoint-98").symlink_to(tmp_path / "nowhere")
    (folder / "checkpoint-97").symlink_to(elsewhere)
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "w.bin").write_text("years of work")
    (folder / "checkpoint-1").symlink_to(elsewhere)
    newest, notes = newest_complete(folder)
    assert newest == good
    assert notes == [
        "checkpoint-99 is no folder: passed over", "checkpoint-98 is a link: passed over",
        "checkpoint-97 is a link: passed over",
    ]  # fmt: skip
    set_aside(folder, good)
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint-4", "damaged-checkpoint-1", "damaged-checkpoint-97", "unknown-checkpoint-2",
        "unknown-checkpoint-98", "unknown-checkpoint-99",
    ]  # fmt: skip
    assert (folder / "unknown-checkpoint-2" / "w.bin").exists() and fault_of(elsewhere) is None


def test_an_unfinished_one_goes_where_this_run_began_it(tmp_path: Path) -> None:
    good = written(tmp_path, 4)
    for _ in range(2):
        unfinished = tmp_path / "checkpoint-8"
        mark_again(unfinished)
        (unfinished / "optimizer.pt").write_bytes(b"half")
        assert fault_of(unfinished) == "was not finished"
        set_aside(tmp_path, good)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
    mark_again(good)  # saved once more
    assert fault_of(good) == "was not finished"
    seal(good, optimizer="sgd")
    assert fault_of(good) is None and optimizer_of(good) == "sgd"


def test_old_ones_go_and_only_those_with_a_seal(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        written(tmp_path, step)
    elsewhere = written(tmp_path / "elsewhere", 1)
    written(tmp_path, 3, sealed=False)
    (tmp_path / "checkpoint-1").symlink_to(elsewhere)
    (tmp_path / "checkpoint-5").write_text("not a folder")
    remove_old(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-1", "checkpoint-3", "checkpoint-5", "checkpoint-6", "checkpoint-8",
    ]  # fmt: skip
    assert fault_of(elsewhere) is None


def test_what_is_set_aside_never_takes_the_place_of_another(tmp_path: Path) -> None:
    for _ in range(3):
        (written(tmp_path, 6) / "deeper" / "more.bin").write_bytes(b"")
        set_aside(tmp_path, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "damaged-checkpoint-6", "damaged-checkpoint-6-2", "damaged-checkpoint-6-3",
    ]  # fmt: skip


def test_the_newest_complete_one_is_found_past_broken_ones(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        written(tmp_path, step)
    (tmp_path / "checkpoint-10" / "deeper" / "more.bin").write_bytes(b"")
    written(tmp_path, 11, sealed=False)
    (tmp_path / "checkpoint-x").mkdir()
    newest, notes = newest_complete(tmp_path)
    assert newest == tmp_path / "checkpoint-9"
    assert notes == [
        "checkpoint-11 was not finished: passed over",
        "checkpoint-10 is damaged: deeper/more.bin is not what was saved: passed over",
    ]
    assert optimizer_of(newest) == "adamw_8bit"
    assert newest_complete(tmp_path / "nowhere") == (None, [])


def test_setting_aside_touches_only_what_is_newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (2, 4, 6):
        written(tmp_path, step)
    written(tmp_path, 8, sealed=False)
    monkeypatch.chdir(tmp_path)
    set_aside(tmp_path, Path("checkpoint-4"))  # however the path is written
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-2", "checkpoint-4", "damaged-checkpoint-6", "unknown-checkpoint-8",
    ]  # fmt: skip
