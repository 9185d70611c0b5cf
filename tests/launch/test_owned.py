"""Nothing is removed but what a run wrote and can prove: not beside it, not through a link, not under a live run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_planner.errors import InputError, RunError
from qlora_planner.runs.checkpoints import seal
from qlora_planner.runs.directory import RunDirectory, check_layout, open_new, replace_adapter, write_json
from qlora_planner.runs.lock import held
from qlora_planner.runs.owned import MARK, mark, remove_marked

WORK = "years of work"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A finished run as `train` leaves it, with a report of its own, and a checkpoint that was being written."""
    folder = RunDirectory(tmp_path / "run")
    folder.path.mkdir()
    write_json(folder.record, {"schema": "qlora-plan/run/1"})
    for step in (4, 8):
        checkpoint = folder.checkpoints / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        for name in ("trainer_state.json", "optimizer.pt"):
            (checkpoint / name).write_text("{}")
        seal(checkpoint, optimizer="adamw_torch")
    mark(folder.checkpoints / "checkpoint-12")
    (folder.checkpoints / "checkpoint-12" / "optimizer.pt").write_bytes(b"half")
    mark(folder.logs)
    (folder.logs / "events").write_bytes(b"x")
    partial = folder.path / "adapter.partial"
    mark(partial)
    (partial / "adapter_model.safetensors").write_bytes(b"trained")
    (partial / "README.md").write_text("an adapter")
    assert replace_adapter(folder, partial) is None
    for name in ("plan.yaml", "metrics.jsonl", "summary.json", "report.html", "log.txt"):
        (folder.path / name).write_text("{}")
    return folder


def everything(folder: Path) -> dict[Path, bytes | str]:
    return {
        path: str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else "a folder"
        for path in folder.rglob("*")
    }


def test_force_removes_all_that_a_run_wrote(run: RunDirectory) -> None:
    (run.path / "notes.txt").write_text(WORK)
    open_new(run, force=True)
    assert [path.name for path in run.path.iterdir()] == ["notes.txt"]


Change = Callable[[RunDirectory], object]


def _unsealed(run: RunDirectory) -> None:
    folder = run.checkpoints / "checkpoint-9"
    folder.mkdir()
    (folder / "w.bin").write_text(WORK)


def _folder_for_log(run: RunDirectory) -> None:
    run.log.unlink()
    run.log.mkdir()


def _elsewhere(run: RunDirectory, name: str) -> None:
    """The folder `name` of the run is a link to one of the same content elsewhere."""
    (run.path / name).rename(run.path.parent / "elsewhere")
    (run.path / name).symlink_to(run.path.parent / "elsewhere")


FOREIGN: dict[str, Change] = {
    "a run.json of another tool": lambda run: run.record.write_text('{"run": "theirs"}'),
    "a folder beside checkpoints": lambda run: (run.checkpoints / "mine").mkdir(),
    "a file in a checkpoint": lambda run: (run.checkpoints / "checkpoint-8" / "w.bin").write_text(WORK),
    "a checkpoint without seal or mark": _unsealed,
    "a seal that is none": lambda run: (run.checkpoints / "checkpoint-8" / "complete.json").write_text("[]"),
    "a file called as a checkpoint is": lambda run: (run.checkpoints / "checkpoint-99").write_text(WORK),
    "a changed adapter": lambda run: (run.adapter / "README.md").write_text(WORK),
    "a file beside the adapter": lambda run: (run.adapter / "eval.json").write_text(WORK),
    "logs of another tool": lambda run: (run.logs / MARK).unlink(),
    "a folder called as a file is": _folder_for_log,
    "checkpoints elsewhere": lambda run: _elsewhere(run, "checkpoints"),
    "an adapter elsewhere": lambda run: _elsewhere(run, "adapter"),
    "logs elsewhere": lambda run: _elsewhere(run, "logs"),
    "a log elsewhere": lambda run: _elsewhere(run, "log.txt"),
    "one checkpoint elsewhere": lambda run: _elsewhere(run, "checkpoints/checkpoint-8"),
    "a link in a checkpoint": lambda run: _elsewhere(run, "checkpoints/checkpoint-8/optimizer.pt"),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.fault(
    "`--force` over what is not provably the run's: files beside a checkpoint's, a changed adapter, links",
    said="so nothing is removed; move it away",
    exit=2,
    part="resumed",
)
def test_force_removes_nothing_where_something_is_not_proven(change: Change, run: RunDirectory) -> None:
    change(run)
    before = everything(run.path.parent)
    with pytest.raises(InputError, match=r"so nothing is removed; move it away|which is no run of ours"):
        open_new(run, force=True)
    assert everything(run.path.parent) == before


def test_force_over_the_folder_of_another_tool(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    (theirs / "checkpoints" / "mine").mkdir(parents=True)
    (theirs / "checkpoints" / "mine" / "w.bin").write_text(WORK)
    (theirs / "run.json").write_text('{"schema": "theirs/1"}')
    before = everything(theirs)
    with pytest.raises(InputError, match="theirs holds checkpoints, which is no run of ours"):
        open_new(RunDirectory(theirs), force=True)
    assert everything(theirs) == before


def test_a_start_that_was_ended_before_it_wrote_anything_is_no_start(tmp_path: Path) -> None:
    (tmp_path / "run.json.partial").write_text('{"sch')
    open_new(RunDirectory(tmp_path), force=False)
    (tmp_path / "plan.yaml").write_text("schema: qlora-plan/plan/1\n")
    with pytest.raises(InputError, match="holds a plan, and no run was begun there; --force begins one"):
        open_new(RunDirectory(tmp_path), force=False)
    open_new(RunDirectory(tmp_path), force=True)
    assert (tmp_path / "plan.before.yaml").read_text() == "schema: qlora-plan/plan/1\n"
    assert not (tmp_path / "plan.yaml").exists()


@pytest.mark.parametrize("name", ["checkpoints", "adapter", ".data", "run.json", "log.txt"])
@pytest.mark.fault(
    "`--resume` where a part of the run is a link",
    said="is a link; a run keeps to its own folder",
    exit=2,
    part="resumed",
)
def test_a_run_with_a_link_in_it_is_not_gone_on_with(name: str, run: RunDirectory) -> None:
    if name == ".data":
        mark(run.path / name)
    _elsewhere(run, name)
    with pytest.raises(InputError, match="is a link; a run keeps to its own folder"):
        check_layout(run)


def test_a_file_in_place_of_a_folder_is_named(run: RunDirectory) -> None:
    check_layout(run)
    run.logs.rename(run.path.parent / "logs")
    run.logs.write_text(WORK)
    with pytest.raises(InputError, match="logs is no folder; move it away"):
        check_layout(run)


@pytest.mark.fault(
    "another adapter where the run puts its own", does="kept as `adapter.kept`, with a note", exit=0, part="resumed"
)
def test_an_adapter_that_the_run_did_not_write_is_kept(run: RunDirectory) -> None:
    (run.adapter / "README.md").write_text(WORK)
    partial = run.path / "adapter.partial"
    mark(partial)
    (partial / "adapter_model.safetensors").write_bytes(b"trained on")
    kept = replace_adapter(run, partial)
    assert kept == run.path / "adapter.kept" and (kept / "README.md").read_text() == WORK
    assert [path.name for path in run.adapter.iterdir()] == ["adapter_model.safetensors"]
    mark(partial)
    (partial / "adapter_model.safetensors").write_bytes(b"and on")
    assert replace_adapter(run, partial) is None  # its own it replaces


def test_a_scratch_folder_that_the_run_did_not_make_stays(tmp_path: Path) -> None:
    (tmp_path / ".rehearsal").mkdir()
    (tmp_path / ".rehearsal" / "w.bin").write_text(WORK)
    for touch in (mark, remove_marked):
        with pytest.raises(RunError, match="not made by this run; move it away"):
            touch(tmp_path / ".rehearsal")
    assert (tmp_path / ".rehearsal" / "w.bin").read_text() == WORK


@pytest.mark.parametrize("written", [None, "", '{"schema": "qlo', '{"schema": "qlora-plan/mark/1"}'])
def test_a_folder_whose_mark_was_being_written_is_the_runs_own(written: str | None, tmp_path: Path) -> None:
    folder = tmp_path / ".rehearsal"
    for touch in (mark, remove_marked):
        folder.mkdir(exist_ok=True)
        if written is not None:
            (folder / MARK).write_text(written)
        touch(folder)
        assert folder.exists() == (touch is mark)
    folder.mkdir()
    (folder / "w.bin").write_text(WORK)
    (folder / MARK).write_text("" if written is None else written[:-1])
    with pytest.raises(RunError, match="not made by this run"):
        remove_marked(folder)


def test_a_folder_that_was_being_removed_still_has_its_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ".rehearsal"
    mark(folder)
    for name in ("a", "b", "z"):
        (folder / name).write_text("x")
    unlink = Path.unlink
    gone: list[Path] = []

    def ended(path: Path, missing_ok: bool = False) -> None:
        if gone:
            raise KeyboardInterrupt
        gone.append(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", ended)
    with pytest.raises(KeyboardInterrupt):
        remove_marked(folder)
    monkeypatch.undo()
    assert len(list(folder.iterdir())) == 3
    remove_marked(folder)
    assert not folder.exists()


HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from qlora_planner.runs.lock import held
with held(Path(sys.argv[1])) as lock:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(lock,))
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_a_run_that_trains_is_left_alone_until_parent_and_child_have_ended(tmp_path: Path) -> None:
    import psutil

    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = psutil.Process(int(holder.stdout.readline()))
    with pytest.raises(InputError, match="is being trained in"), held(tmp_path):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with pytest.raises(InputError, match="is being trained in"), held(tmp_path):
        pass
    child.kill()
    psutil.wait_procs([child], timeout=5)
    with held(tmp_path) as lock:
        assert lock is not None
    assert list(tmp_path.iterdir()) == []


def test_the_folder_may_be_given_by_a_link(run: RunDirectory) -> None:
    link = run.path.parent / "link"
    link.symlink_to(run.path)
    open_new(RunDirectory(link), force=True)
    assert list(run.path.iterdir()) == [] and link.is_symlink()
