"""tui needs a terminal, and says so in one line; on one it starts, shows the table and leaves."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from tests.cli.conftest import Invoke, Process


def test_without_a_terminal(process: Process) -> None:
    done = process("tui", "--gpu", "24GB")
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert "terminal" in done.stderr


def test_help_says_what_it_is(invoke: Invoke) -> None:
    result = invoke("tui", "--help")
    assert result.exit_code == 0
    assert "explorer" in result.stdout


def test_it_is_served_to_this_machine_by_the_command_that_was_typed(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[tuple[str, dict[str, object]]] = []

    class Server:
        def __init__(self, command: str, **more: object) -> None:
            served.append((command, more))

        def serve(self) -> None:
            return

    monkeypatch.setitem(sys.modules, "textual_serve", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "textual_serve.server", SimpleNamespace(Server=Server))
    assert invoke("tui", "llama-3.1-8b", "--gpu", "24GB", "--ascii", "--serve").exit_code == 0
    assert invoke("tui", "--serve", "9000").exit_code == 0
    (first, here), (second, there) = served
    assert first.endswith("-m qlora_planner tui llama-3.1-8b --gpu 24GB --ascii")
    assert second.endswith("-m qlora_planner tui")
    assert (here["host"], here["port"], there["port"]) == ("127.0.0.1", 8000, 9000)
    monkeypatch.setitem(sys.modules, "textual_serve.server", None)
    missing = invoke("tui", "--serve")
    assert (missing.exit_code, "textual-serve" in missing.stderr) == (3, True)


@pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")
def test_on_a_terminal() -> None:
    import pty
    import termios

    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (30, 100))
    child = subprocess.Popen(
        (sys.executable, "-m", "qlora_planner", "tui", "--gpu", "24GB"),
        stdin=follower, stdout=follower, stderr=follower, env={**os.environ, "TERM": "xterm-256color"},
        start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    seen, until, left = b"", time.monotonic() + 60, False
    while time.monotonic() < until:
        if not select.select([leader], [], [], 0.2)[0]:
            continue
        try:
            part = os.read(leader, 1 << 16)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        seen += part
        if not left and b"tight" in seen:
            os.write(leader, b"q")
            left = True
    os.close(leader)
    assert left, seen[-2000:]
    assert child.wait(20) == 0
    assert b"Traceback" not in seen
