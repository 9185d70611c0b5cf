"""The explorer on a terminal of its own: first useful paint, key to repaint, resident memory, and random keys.

A pseudo-terminal stands for the terminal. Useful is the table with its first models. A key's repaint ends at the last
byte of its first burst; settled is when nothing follows any more, with the figures of the new run. `--monkey N`
presses N random keys without a terminal and ends with a traceback when one of them raises. `--check` ends with 1 when a
bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pty
import select
import statistics
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Sequence
from pathlib import Path

MIB = 1 << 20
BARS = {"first_paint_s": 0.8, "key_median_s": 0.050, "key_worst_s": 0.100, "rss_bytes": 120 * MIB}
_QUIET_S = 0.06
ARROWS = {"right": b"\x1b[C", "left": b"\x1b[D", "down": b"\x1b[B", "up": b"\x1b[A"}


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, words: Sequence[str], rows: int, columns: int) -> None:
        self.leader, follower = pty.openpty()
        termios.tcsetwinsize(follower, (rows, columns))
        self.started = time.perf_counter()
        self.child = subprocess.Popen(
            words, stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        )  # fmt: skip
        os.close(follower)
        self.seen = b""

    def read(self, wait_s: float) -> bytes:
        """What comes within `wait_s`; empty when nothing does."""
        if not select.select([self.leader], [], [], wait_s)[0]:
            return b""
        part = os.read(self.leader, 1 << 16)
        self.seen += part
        return part

    def until(self, text: bytes, limit_s: float = 30) -> float:
        """Seconds until `text` is painted. Raises TimeoutError when it is not."""
        start, begin = time.perf_counter(), len(self.seen)
        while text not in self.seen[begin:]:
            self.read(0.01)
            if time.perf_counter() - start > limit_s:
                raise TimeoutError(f"{text!r} was not painted: {self.seen[-500:]!r}")
        return time.perf_counter() - start

    def quiet(self, for_s: float = 0.4) -> None:
        """Until nothing is painted any more."""
        while self.read(for_s):
            pass

    def press(self, key: bytes) -> float:
        """Seconds from a key to the end of its first repaint."""
        start = time.perf_counter()
        os.write(self.leader, key)
        if not self.read(2):
            raise TimeoutError(f"{key!r} repainted nothing")
        last = time.perf_counter()
        while self.read(0.004):
            last = time.perf_counter()
        return last - start

    def rss_bytes(self) -> int:
        """The child's resident memory now."""
        for line in Path(f"/proc/{self.child.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise ValueError("VmRSS is not told here")

    def close(self) -> int:
        """Leave as people do; its exit code."""
        os.write(self.leader, b"q")
        while self.child.poll() is None:
            try:
                self.read(0.05)
            except OSError:
                break
        os.close(self.leader)
        return self.child.wait(20)


def measure(keys: int, gpu: str) -> dict[str, float]:
    """One start, one model, `keys` turns of its knobs."""
    words = (sys.executable, "-m", "qlora_planner", "tui", "--gpu", gpu)
    with tempfile.TemporaryDirectory() as home:
        os.environ["XDG_STATE_HOME"] = home
        terminal = Terminal(words, 40, 120)
        frame = terminal.until(b"Compare")
        terminal.until(b"sort verdict")
        first = time.perf_counter() - terminal.started
        terminal.until(b"tight")
        terminal.quiet(1.0)
        terminal.quiet()
        for letter in "/llama-3.1-8b\r":
            terminal.press(letter.encode())
            terminal.quiet(0.15)
        os.write(terminal.leader, b"\r")
        terminal.until(b"to spare")
        terminal.quiet(1.0)
        taken: list[float] = []
        settled: list[float] = []
        # Sequence, batch and accumulation, each one place on and back: every key repaints.
        pattern = ("right", "left", "down", "right", "left", "down", "right", "left", "up", "up")
        for index in range(keys):
            start = time.perf_counter()
            taken.append(terminal.press(ARROWS[pattern[index % len(pattern)]]))
            last = time.perf_counter()
            while terminal.read(0.35):
                last = time.perf_counter()
            settled.append(last - start)
        rss = terminal.rss_bytes()
        code = terminal.close()
    if code:
        raise SystemExit(f"the explorer ended with {code}")
    return {
        "frame_s": frame, "first_paint_s": first, "key_median_s": statistics.median(taken), "key_worst_s": max(taken),
        "settled_median_s": statistics.median(settled), "settled_worst_s": max(settled), "rss_bytes": rss,
    }  # fmt: skip


async def monkey(count: int, seed: int) -> None:
    """Random keys without a terminal; what raises, raises here."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from qlora_planner.cli.tui import make_explorer
    from qlora_planner.tui.control.child_process import Launch
    from tests.tui.monkey import keys
    from tests.tui.scenes import write_data

    root = Path(__file__).resolve().parent.parent
    os.environ["PYTHONPATH"] = str(root)
    Launch.program = (sys.executable, str(root / "tests/tui/child.py"))  # a key that trains starts no real training
    data = str(write_data(Path("train.jsonl").absolute()))
    explorer = make_explorer({"gpu": "rtx-4090", "profiles": None, "data": data, "chars_per_token": 4.0})
    type(explorer).action_leave = lambda self: None
    async with explorer.run_test(size=(100, 30)) as pilot:
        for at, key in enumerate(keys(seed, count)):
            explorer.simulate_key(key)
            if at % 10 == 9:
                await pilot.pause()
            if at == 200:
                await pilot.press("escape", "escape", "1", "slash", *"llama-3.1-8b", "enter", "enter")


def main() -> int:
    """Measure, or let the monkey at it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keys", type=int, default=40)
    parser.add_argument("--gpu", default="rtx-4090")
    parser.add_argument("--monkey", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    if asked.monkey:
        with tempfile.TemporaryDirectory() as home:
            os.environ["XDG_STATE_HOME"] = home
            os.chdir(home)
            asyncio.run(monkey(asked.monkey, asked.seed))
        print(f"{asked.monkey:,} random keys, no exception")
        return 0
    rows = [measure(asked.keys, asked.gpu) for _ in range(asked.runs)]
    found = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    missed = [name for name, bar in BARS.items() if found[name] > bar]
    if asked.json:
        print(json.dumps({"bars": BARS, "found": found, "missed": missed}, indent=1))
    else:
        for name, figure in found.items():
            shown = f"{figure / MIB:.0f} MiB" if name.endswith("bytes") else f"{1000 * figure:.0f} ms"
            bar = BARS.get(name)
            held = "" if bar is None else f"  bar {bar / MIB:.0f} MiB" if name.endswith("bytes") else f"  bar {bar} s"
            print(f"{name:<18}{shown:>10}{held}{'  MISSED' if name in missed else ''}")
    return 1 if asked.check and missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
