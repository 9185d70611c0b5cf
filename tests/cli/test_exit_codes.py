"""Every fault is one line on stderr and the code of the stable surface; stdout holds the answer alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_planner.cli.streams import answer
from tests.cli.conftest import Invoke, Process

MODEL = "meta-llama/Llama-3.1-8B"  # in full: a tail is answered with the name that it was taken for

# Arguments, exit code, what the line must say.
FAULTS = [
    (["--gpu", "24"], 2, "24GB"),
    (["--gpu", "24GBB"], 2, "24GBB"),
    (["--gpu", "-1GB"], 2, "-1GB"),
    (["--gpu", "0GB"], 2, "0GB"),
    (["--gpu", "rtx-9999"], 2, "rtx-"),
    (["--gpu", "24GB", "--rank", "0"], 2, "--rank"),
    (["estimate", MODEL, "--rank", "0"], 2, "--rank"),
    (["estimate", MODEL, "--rank", "many"], 2, "--rank"),
    (["estimate", MODEL, "--batch-size", "99999999999999999999"], 2, "--batch-size"),
    (["estimate", MODEL, "--lora-dropout", "nan"], 2, "--lora-dropout"),
    (["estimate", MODEL, "--target-modules", "nonesuch"], 2, "q_proj"),
    (["estimate", MODEL, "--optimizer", "adamx"], 2, "adamw_torch"),
    (["estimate", MODEL, "--quant", "nf5"], 2, "nf4"),
    (["estimate", MODEL, "--attention", "flush"], 2, "sdpa"),
    (["estimate", MODEL, "--alloc-conf", "garbage"], 2, "expandable_segments:True"),
    (["estimate", MODEL, "--stack", "trl"], 2, "trl=1.13"),
    (["estimate", MODEL, "--stack", "lrt=1.0"], 2, "transformers"),
    (["estimate", MODEL, "--stack", "trl=1.0,trl=1.1"], 2, "twice"),
    (["estimate", MODEL, "--stack", "trl=new"], 2, "trl=1.13"),
    (["estimate", MODEL, "--gpu", "24GB", "--cap", "2GB"], 2, "2GiB"),
    (["estimate", MODEL, "--gpu", "24GB", "--cap", "1TiB"], 2, "--cap"),
    (["estimate", MODEL, "--gpu", "24GB", "--reserve", "lots"], 2, "--reserve"),
    (["estimate", MODEL, "--gpu", "24GB", "--reserve", "30GiB"], 2, "--reserve"),
    (["estimate", MODEL, "--reserve", "1GiB"], 2, "--gpu"),
    (["estimate", "llama-3.1-8b", "extra"], 2, "extra"),
    (["estimate", MODEL, "--sequence", "9"], 2, "--sequence"),
    (["estimate"], 2, "MODEL"),
    (["estimate", ""], 2, "MODEL"),
    (["estimate", "llama", "--gpu", "24GB"], 2, "could be"),
    (["estimate", "7b"], 2, "more of the name"),
    (["estimate", "nobody/has-this-model"], 3, "nobody/has-this-model"),
    (["estimate", "./nowhere.json"], 2, "no such file"),
    (["estimate", "a\x1b[31m"], 2, "no Hub id"),
    (["audit", MODEL, "--quant", "none"], 2, "nf4"),
    (["audit", MODEL, "--method", "lora"], 2, "nf4"),
    (["--gpu", "24GB", "--json", "--csv"], 2, "--csv"),
    (["--gpu", "24GB", "--profiles", "/nonexistent"], 2, "/nonexistent"),
    (["models", "zzzz"], 2, "zzzz"),
    (["gpus", "zzzz"], 2, "zzzz"),
    (["modles"], 2, "models"),
    (["estmate", MODEL], 2, "estimate"),
    (["llama", "3.1", "8b"], 2, "quote"),
    ([MODEL, "--gpu", "24GB", "--data", "x.jsonl"], 2, "x.jsonl: no such file or folder"),
    ([MODEL, "--gpu", "24GB", "--effective-batch", "8", "--grad-accum", "2"], 2, "--effective-batch"),
    ([MODEL, "--gpu", "24GB", "--effective-batch", "8", "--batch-size", "3"], 2, "no multiple"),
    ([MODEL, "--gpu", "24GB", "--compare", "zzzz"], 2, "zzzz"),
    ([MODEL, "--gpu", "24GB", "--objective", "luck"], 2, "luck"),
    (["doctor", "nothing", "that", "is", "known"], 2, "doctor"),
]


@pytest.mark.parametrize(("args", "code", "says"), FAULTS, ids=[" ".join(args)[:60] for args, _, _ in FAULTS])
def test_fault(invoke: Invoke, args: list[str], code: int, says: str) -> None:
    result = invoke(*args)
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("qlora-plan: ")
    assert says in result.stderr
    assert result.stderr.isprintable() or result.stderr[:-1].isprintable()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "", '{"model_type": "llama"}', '{"model_type": "llama", "hidden_size": "x"}',
     '{"model_type": "llama", "hidden_size": -4, "num_hidden_layers": 2, "vocab_size": 9}',
     '{"model_type": "llama", "hidden_size": 4e9, "num_hidden_layers": 2, "vocab_size": 9}',
     '{"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 512}'],
)  # fmt: skip
def test_bad_config(invoke: Invoke, bad_config: Callable[[str], str], text: str) -> None:
    result = invoke("estimate", bad_config(text), "--gpu", "24GB")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "config.json" in result.stderr


def test_unknown_model_type(invoke: Invoke, bad_config: Callable[[str], str]) -> None:
    text = '{"model_type": "nonesuch", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 512}'
    result = invoke("estimate", bad_config(text), "--gpu", "24GB")
    assert result.exit_code == 3
    assert len([line for line in result.stderr.splitlines() if "is new here" not in line]) == 1


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["estimate", MODEL, "--gpu", "24GB"], 0),
        (["estimate", MODEL], 0),
        (["estimate", MODEL, "--gpu", "6GB"], 1),
        (["estimate", MODEL, "--gpu", "16GB", "--compute-dtype", "float16", "--trainer", "trl-sft"], 1),
        (["estimate", MODEL, "--compute-dtype", "float16", "--trainer", "trl-sft"], 1),
        ([MODEL, "--gpu", "24GB"], 0),
        (["meta-llama/Llama-3.1-405B", "--gpu", "24GB"], 1),
        (["--gpu", "24GB"], 0),
        (["--gpu", "300MiB"], 1),
        (["audit", "tiiuae/falcon-7b"], 0),
        (["gpus"], 0),
        (["models"], 0),
        (["--help"], 0),
        ([], 0),
        (["--version"], 0),
    ],
    ids=lambda value: " ".join(value)[:70] if isinstance(value, list) else None,
)
def test_answer(invoke: Invoke, args: list[str], code: int) -> None:
    result = invoke(*args)
    assert result.exit_code == code, result.stderr
    assert result.stdout.endswith("\n")
    assert result.stderr == ""


def test_interrupted(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qlora_planner.session.session.load_model", interrupt)
    result = invoke("estimate", MODEL)
    assert result.exit_code == 130
    assert result.stdout == ""
    assert "interrupted" in result.stderr


def test_a_bug_is_one_line_and_its_traceback_can_be_had(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> None:
        raise KeyError("hidden\nsize")

    monkeypatch.setattr("qlora_planner.session.session.load_model", broken)
    result = invoke("estimate", MODEL)
    assert result.exit_code == 4
    assert len(result.stderr.splitlines()) == 1
    assert "KeyError" in result.stderr
    assert "QLORA_PLAN_DEBUG=1" in result.stderr
    monkeypatch.setenv("QLORA_PLAN_DEBUG", "1")
    assert "Traceback" in invoke("estimate", MODEL).stderr


def test_quiet_and_not(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_planner.session.models import load_model as original

    def warning(*args: object, **options: object) -> object:
        options["warn"]("something odd")  # type: ignore[operator]
        return original(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("qlora_planner.session.session.load_model", warning)
    loud, quiet = invoke("estimate", MODEL, "--json"), invoke("estimate", MODEL, "--json", "--quiet")
    assert loud.stderr == "qlora-plan: something odd\n"
    assert quiet.stderr == ""
    assert loud.stdout == quiet.stdout
    json.loads(loud.stdout)


def test_real_process(process: Process) -> None:
    good = process("estimate", MODEL, "--gpu", "24GB", "--json")
    assert (good.returncode, good.stderr) == (0, "")
    json.loads(good.stdout)
    bad = process("estimate", MODEL, "--gpu", "6GB", "--json")
    assert (bad.returncode, bad.stderr) == (1, "")
    assert json.loads(bad.stdout)["fit"]["verdict"] == "does-not-fit"
    wrong = process("--gpu", "rtx-9999")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert process("tui").returncode == 3


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_reader_that_goes_away_changes_nothing() -> None:
    for args, code in ((("--gpu", "24GB", "--csv"), 0), (("estimate", MODEL, "--gpu", "6GB"), 1)):
        child = subprocess.Popen(
            (sys.executable, "-m", "qlora_planner", *args), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
        child.stderr.close()
        assert child.wait(60) == code


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.fault(
    "the terminal is closed while a run goes on",
    does="a checkpoint after the step that runs; the answer that nobody can read changes no exit code",
    exit=130,
    part="begun",
)
def test_a_terminal_that_was_closed_changes_no_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        answer("anybody there?")
        os.close(ours)
        with pytest.raises(OSError, match=r"Input/output error"):
            os.write(theirs, b"x")
        answer("nobody any more")
        answer("nor now")


def test_full_disk_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            (sys.executable, "-m", "qlora_planner", "estimate", MODEL, "--json"),
            stdout=full, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_control_c_in_a_real_process() -> None:
    text = (
        "import time, qlora_planner.session.session as api\n"
        "from qlora_planner.cli.main import main\n"
        "def slow(*a, **k):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "api.load_model = slow\n"
        "import sys\nsys.argv = ['qlora-plan', 'estimate', 'x', '--quiet']\nmain()\n"
    )
    child = subprocess.Popen((sys.executable, "-c", text), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in err
