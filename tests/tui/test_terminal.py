"""The explorer on a real pseudo-terminal: it paints, it leaves, and it ends by itself when the terminal is gone."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pty = pytest.importorskip("pty")
ROOT = Path(__file__).parents[2]


class OnTerminal:
    """`qlora-plan tui` on a terminal of its own."""

    def __init__(self, home: Path, *words: str, folder: Path | None = None) -> None:
        import termios

        self.leader, follower = pty.openpty()
        termios.tcsetwinsize(follower, (30, 100))
        self.state = home / "qlora-planner" / "tui.json"
        self.child = subprocess.Popen(
            [sys.executable, "-P", "-m", "qlora_planner", "tui", "--gpu", "24GB", *words],
            stdin=follower, stdout=follower, stderr=follower, start_new_session=True, cwd=folder,
            env={**os.environ, "TERM": "xterm-256color", "XDG_STATE_HOME": str(home), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        os.close(follower)

    def until(self, text: bytes, limit_s: float = 40) -> None:
        seen, end = b"", time.monotonic() + limit_s
        while text not in seen:
            assert time.monotonic() < end, seen[-600:]
            if select.select([self.leader], [], [], 0.2)[0]:
                seen += os.read(self.leader, 1 << 16)


@pytest.fixture
def on_terminal(tmp_path: Path) -> Iterator[OnTerminal]:
    terminal = OnTerminal(tmp_path)
    yield terminal
    if terminal.child.poll() is None:
        os.killpg(terminal.child.pid, signal.SIGKILL)
        terminal.child.wait()
    with suppress(OSError):
        os.close(terminal.leader)


def test_q_leaves_with_the_place_kept(on_terminal: OnTerminal) -> None:
    on_terminal.until(b"sort verdict")
    os.write(on_terminal.leader, b"sq")
    end = time.monotonic() + 20
    while on_terminal.child.poll() is None and time.monotonic() < end:
        if select.select([on_terminal.leader], [], [], 0.1)[0]:
            with suppress(OSError):
                os.read(on_terminal.leader, 1 << 16)
    assert on_terminal.child.poll() == 0
    assert json.loads(on_terminal.state.read_text())["sort"] == "size"


@pytest.mark.fault("the explorer's terminal is closed", does="it ends, the place kept", exit=130, part="outside")
def test_it_ends_with_its_terminal(on_terminal: OnTerminal) -> None:
    on_terminal.until(b"sort verdict")
    # The terminal goes without a word: SIGHUP is for the session's leader, which may be another process.
    os.kill(on_terminal.child.pid, signal.SIGSTOP)
    os.close(on_terminal.leader)
    os.kill(on_terminal.child.pid, signal.SIGCONT)
    assert on_terminal.child.wait(20) == 130
    assert json.loads(on_terminal.state.read_text())["card"] == "24GB"
    on_terminal.leader, other = os.pipe()
    os.close(other)


def test_without_a_terminal_for_stderr_it_says_so(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    child = subprocess.run(
        [sys.executable, "-m", "qlora_planner", "tui"], stdin=follower, stdout=follower, stderr=subprocess.PIPE,
        text=True, timeout=30,
    )  # fmt: skip
    os.close(leader)
    os.close(follower)
    assert child.returncode == 3
    assert "2> FILE" in child.stderr
