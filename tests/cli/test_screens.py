"""What a terminal gets, and what a pipe gets: width, colour, characters."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cli.conftest import Invoke, Process

MODEL = "llama-3.1-8b"
SCREENS = [
    ["--gpu", "24GB"],
    ["--gpu", "24GB", "--all", "--explain"],
    ["--gpu", "6GB"],
    ["--gpu", "b300"],
    ["--gpu", "300MiB"],
    ["--gpu", "24GB", "--quant", "int8", "--seq-len", "512"],
    [MODEL, "--gpu", "24GB"],
    [MODEL, "--gpu", "24GB", "--seq-len", "90000", "--explain"],
    ["llama-3.1-405b", "--gpu", "24GB"],
    ["estimate", MODEL, "--gpu", "24GB"],
    ["estimate", MODEL, "--gpu", "6GB", "--explain"],
    ["estimate", MODEL, "--gpu", "t4", "--compute-dtype", "bfloat16"],
    ["estimate", MODEL],
    ["estimate", "gemma-2-9b", "--seq-len", "9000", "--eval-batch-size", "8", "--gpu", "rtx-4090"],
    ["estimate", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "--gpu", "24GB"],
    ["audit", MODEL],
    ["audit", "falcon-7b"],
    ["audit", "Qwen3-30B-A3B", "--explain"],
    ["audit", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "--explain"],
    ["gpus"],
    ["gpus", "t4", "--explain"],
    ["models"],
    ["models", "qwen3", "--explain"],
    ["--help"],
    ["estimate", "--help"],
    ["verify", "--help"],
    ["calibrate", "--help"],
    ["check", "--help"],
    ["plan", "--help"],
]


@pytest.mark.parametrize("args", SCREENS, ids=" ".join)
def test_plain_text_of_at_most_80_columns(invoke: Invoke, args: list[str]) -> None:
    result = invoke(*args)
    assert result.exit_code in (0, 1, 5)  # 5: of no model a step of this run is recorded
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert not any(line != line.rstrip() for line in result.stdout.splitlines())


@pytest.mark.parametrize("args", [["--gpu", "24GB"], ["estimate", MODEL, "--gpu", "6GB"], ["audit", MODEL], ["--help"]])
def test_ascii_where_the_stream_has_no_more(process: Process, args: list[str]) -> None:
    done = process(*args, PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert done.stdout.isascii()
    # A question mark is what a character would become that the stream has not; one is the sign of what cannot be said.
    assert done.stdout.replace("? cannot say", "cannot say").count("?") == 0
    assert done.stderr == ""


def _on_terminal(args: list[str], **env: str) -> str:
    """What the program writes to a terminal of its own."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        (sys.executable, "-m", "qlora_planner", *args), stdout=theirs, stderr=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1", **env},
    )  # fmt: skip
    os.close(theirs)
    found = b""
    try:
        while part := os.read(ours, 1 << 16):
            found += part
    except OSError:  # Linux says so when the other end has closed
        pass
    finally:
        os.close(ours)
        child.wait(60)
    return found.decode()


def test_colour_only_on_a_terminal_that_may_have_it() -> None:
    args = ["estimate", MODEL, "--gpu", "24GB"]
    assert "\x1b[" in _on_terminal(args)
    assert "\x1b" not in _on_terminal(args, NO_COLOR="1")
    assert "\x1b" not in _on_terminal([*args, "--no-color"])
    assert "\x1b" not in _on_terminal(args, TERM="dumb")


@pytest.mark.parametrize(("columns", "most"), [("60", 72), ("72", 72), ("100", 100), ("300", 100)])
def test_terminal_width(columns: str, most: int) -> None:
    for args in (["--gpu", "24GB"], ["estimate", MODEL, "--gpu", "24GB"], ["audit", MODEL], ["gpus"]):
        text = _on_terminal([*args, "--no-color"], COLUMNS=columns)
        assert max(map(len, text.splitlines())) <= most, args


def test_the_survey_ends_in_one_command_that_works(invoke: Invoke) -> None:
    for gpu in ("6GB", "24GB", "h200"):
        text = invoke("--gpu", gpu).stdout
        commands = [line.removeprefix("next: ") for line in text.splitlines() if line.startswith("next: ")]
        assert len(commands) == 1
        assert invoke(*commands[0].split()[1:]).exit_code == 0


def test_the_survey_is_short_unless_all_is_asked(invoke: Invoke) -> None:
    folded, whole = invoke("--gpu", "24GB").stdout, invoke("--gpu", "24GB", "--all").stdout
    assert len(folded.splitlines()) <= 52
    assert "--all" in folded
    assert len(whole.splitlines()) > 170
    assert "more:" not in whole


def test_a_size_as_sold_is_told(invoke: Invoke) -> None:
    assert "24GB is taken as 24,564 MiB" in " ".join(invoke("--gpu", "24GB").stdout.split())


def test_explain_adds_up_by_hand(invoke: Invoke) -> None:
    lines = invoke("estimate", MODEL, "--gpu", "24GB", "--explain").stdout.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("at the peak"))
    rows = [line for line in lines[start + 1 :] if not line.startswith(" ")]
    total_at = next(index for index, line in enumerate(rows) if line.startswith("sum"))
    figures = [int(line[24:46].replace(",", "")) for line in rows[:total_at]]
    assert sum(figures) == int(rows[total_at][24:46].replace(",", ""))
    assert len(figures) == 12


def test_a_shrunk_plan_says_so(invoke: Invoke) -> None:
    text = " ".join(invoke(MODEL, "--gpu", "24GB", "--seq-len", "120000", "--adjust").stdout.split())
    assert "instead of the 120000 asked for" in text


def test_known_error_lines(invoke: Invoke) -> None:
    result = invoke("doctor", "OSError: libcudart.so.11.0: cannot open shared object file")
    assert result.exit_code == 0
    assert "fix:" in result.stdout
