"""A checkpoint is trusted when its seal holds, and nothing else is ever taken away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_planner.launch.checkpoints import SEAL, fault_of, newest_complete, optimizer_of, seal, set_aside


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
def test_a_seal_holds_or_says_why_not(damage: object, says: str | None, tmp_path: Path) -> None:
    path = written(tmp_path, 4)
    damage(path)  # type: ignore[operator]
    assert (fault_of(path) or "").startswith(says) if says else fault_of(path) is None


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4", "damaged-checkpoint-6"]
