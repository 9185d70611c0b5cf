"""No code runs that nobody asked for: modules beside the data, tokenizers and models with code of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_planner import isolation
from qlora_planner.measure import verify
from qlora_planner.runs import supervise
from qlora_planner.tui.control.child_process import Launch
from tests.hostile import imported, lay_traps

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder of data with modules in it."""
    return lay_traps(tmp_path / "data")


def run(
    folder: Path, *command: str, typed: str = "", timeout_s: float = 120, **more: str
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "HOME": str(folder.parent), "XDG_CACHE_HOME": str(folder.parent / "cache"),
        "HF_HOME": str(folder.parent / "hf"),
        **more,
    }  # fmt: skip
    return subprocess.run(
        command, cwd=folder, env=environment, input=typed, capture_output=True, encoding="utf-8", timeout=timeout_s
    )


SCRIPT = (sys.executable, "-P", "-m", "qlora_planner")  # as the console script: its folder, not the working directory


def test_the_folder_is_hostile(hostile: Path) -> None:
    """The trap works: plain Python falls into it."""
    done = run(hostile, sys.executable, "-c", "import random")
    assert "random was imported" in done.stderr
    assert imported(hostile) == ["random"]


@pytest.mark.parametrize(
    "module", ["qlora_planner.runs.child.main", "qlora_planner.measure.child", "qlora_planner.data.auto_tokenizer"]
)
def test_every_child_starts_without_the_working_directory(
    hostile: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hostile)
    monkeypatch.setenv("PYTHONPATH", f":{ROOT}:")  # empty entries mean the working directory
    done = subprocess.run(
        isolation.python_module(module), env=isolation.child_environment(), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "was imported" not in done.stderr
    assert imported(hostile) == []


def test_whoever_starts_a_child_starts_it_so() -> None:
    for command in (verify.CHILD, supervise.CHILD, Launch.program):
        assert tuple(command)[:3] == (sys.executable, "-P", "-m")


STARTS = ("Popen(", "subprocess.run(", "check_output(", "ProcessPool", "os.exec", "os.system(", "posix_spawn")


def test_every_start_of_a_process_is_known() -> None:
    """A new one has to be isolated too, and to be listed here."""
    starts = {
        path.relative_to(ROOT).as_posix()
        for folder in ("qlora_planner", "tools")
        for path in (ROOT / folder).rglob("*.py")
        if any(word in path.read_text() for word in STARTS)
    }
    assert starts == {
        "tools/families/stacks.py",
        "tools/traces.py",
        "tools/families/make.py",
        "tools/families/joined.py",
        "tools/schemas.py",
        "qlora_planner/profiling/tracing/apart.py",
        "qlora_planner/runs/after/gguf.py",  # llama.cpp's converter, by its own path
        *(f"qlora_planner/{name}" for name in ("data/tokenizers.py", "measure/children.py", "diagnose/gather.py")),
    }  # fmt: skip


# PEFT's own, one of them in a message that says what to write.
PEFT_LOADS = ("PeftModel.from_pretrained(", "AutoPeftModelForSequenceClassification.from_pretrained(")


def test_every_loading_of_a_model_or_tokenizer_refuses_its_code() -> None:
    """transformers asks on stdin where it is not told; PEFT and our own classes take no such argument."""
    for path in (ROOT / "qlora_planner").rglob("*.py"):
        text = path.read_text()
        for start in text.split(".from_pretrained(")[1:]:
            if "scripts" not in path.parts and not text[: text.index(start)].endswith(PEFT_LOADS):
                assert "trust_remote_code=False" in start.partition("\n\n")[0], path


@pytest.mark.parametrize(
    "args",
    [["estimate", "llama-3.1-8b", "--gpu", "24GB"], ["plan", "llama-3.1-8b", "--gpu", "24GB", "--data", "rows.jsonl",
     "--chars-per-token", "4"], ["models"], ["check", "plan.yaml", "--gpu", "24GB"]],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize("module", [False, True], ids=["script", "python -m"])
@pytest.mark.fault(
    "a `random.py`, `torch.py` or `qlora_planner.py` beside the data",
    does="not imported by any verb, child or the explorer",
    exit="-",
    part="outside",
)
def test_no_verb_imports_what_lies_beside_the_data(hostile: Path, args: list[str], module: bool) -> None:
    (hostile / "rows.jsonl").write_text('{"text": "hello there"}\n' * 9)
    (hostile / "plan.yaml").write_text("model: llama-3.1-8b\nrun: {seq_len: 512}\n")
    command = SCRIPT
    if module:
        # A module of our own name is what `python -m` was asked for: nobody can tell.
        (hostile / "qlora_planner.py").unlink()
        command = (sys.executable, "-m", "qlora_planner")  # type: ignore[assignment]
    done = run(hostile, *command, *args)
    assert imported(hostile) == [], done.stderr
    assert done.returncode in (0, 1, 2), done.stderr
    assert "bug" not in done.stderr


def test_the_doctor_probes_torch_and_nothing_beside_the_data(hostile: Path) -> None:
    done = run(hostile, *SCRIPT, "doctor", "--json")
    assert imported(hostile) == [], done.stderr
    assert done.returncode in (0, 1, 3), done.stderr
    assert "was imported" not in done.stdout + done.stderr


def test_the_explorer_imports_nothing_beside_the_data(hostile: Path) -> None:
    pytest.importorskip("pty")
    from tests.tui.test_terminal import OnTerminal

    terminal = OnTerminal(hostile.parent, folder=hostile)
    try:
        terminal.until(b"sort verdict")
        os.write(terminal.leader, b"2")  # places are imported when they are gone to
        terminal.until(b"Enter")
    finally:
        terminal.child.kill()
        terminal.child.wait()
        os.close(terminal.leader)
    assert imported(hostile) == []


def own_code(folder: Path, mark: Path) -> Path:
    """A tokenizer that only code beside it can load."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "own.C"}}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}})
    )
    (folder / "tokenizer.model").write_bytes(b"x")
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Own: pass\nclass C: pass\n")
    return folder


@pytest.mark.fault(
    "a tokenizer with code of its own, and standard input that says `y`",
    said="code of its own",
    does="never run",
    exit="2 or 3",
    part="outside",
)
def test_a_tokenizer_with_code_of_its_own_is_not_run_even_where_stdin_says_yes(hostile: Path) -> None:
    pytest.importorskip("transformers")
    mark = hostile.parent / "ran"
    own_code(hostile / "tok", mark)
    (hostile / "rows.jsonl").write_text('{"text": "hello there"}\n' * 9)
    args = ["plan", "llama-3.1-8b", "--gpu", "24GB", "--data", "rows.jsonl", "--tokenizer", "./tok", "--quiet"]
    done = run(hostile, *SCRIPT, *args, typed="y\n" * 9)
    assert not mark.exists()
    assert imported(hostile) == []
    assert done.returncode in (2, 3), done.stderr
    assert "code of its own" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_training_and_generating_refuse_such_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from qlora_planner.errors import PlannerError
    from qlora_planner.runs.after.generate import read_prompt
    from qlora_planner.runs.dataset import load_tokenizer
    from qlora_planner.train.settings import Settings

    def says_yes(*_: object) -> str:
        return "y"

    monkeypatch.setattr("builtins.input", says_yes)
    folder = own_code(tmp_path / "tok", tmp_path / "ran")
    with pytest.raises(PlannerError, match="code of its own"):
        load_tokenizer(str(folder), Settings(), print)
    with pytest.raises(PlannerError, match="code of its own"):
        read_prompt("x", folder, folder, raw=True)
    assert not (tmp_path / "ran").exists()
