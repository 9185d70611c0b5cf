"""How long whole processes take to start and answer, as seconds and as ratios to a bare interpreter.

Each command runs once to warm the disk cache and then `--runs` times; the median counts. Peak resident memory is the
child's own, from wait4. `--check` ends with 1 when a bar is missed; `--only TEXT` picks commands, `--json` prints rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

MIB = 1 << 20
# Linux counts ru_maxrss in KiB, macOS in bytes.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command line and its bars: seconds and bytes, None where there is none."""

    name: str
    arguments: tuple[str, ...]
    bar_s: float | None = None
    bar_bytes: int | None = None
    exit_codes: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one command took: median seconds, highest resident bytes, and the bars it was held to."""

    name: str
    seconds: float
    ratio: float
    rss_bytes: int
    exit_code: int
    bar_s: float | None
    bar_bytes: int | None
    met: bool


def commands(module: str) -> tuple[Command, ...]:
    """The commands that are timed; the first is the bare interpreter."""
    program = ("-m", module)
    return (
        Command(name="python -c pass", arguments=("-c", "pass")),
        Command(
            name="estimate llama-3.1-8b --json",
            arguments=(*program, "estimate", "llama-3.1-8b", "--gpu", "24GB", "--json"),
            bar_s=0.3,
            bar_bytes=60 * MIB,
            exit_codes=(0, 1),
        ),
        Command(name="--gpu 24GB", arguments=(*program, "--gpu", "24GB"), bar_s=1.0),
        Command(
            name="llama-3.1-8b --gpu 24GB",
            arguments=(*program, "llama-3.1-8b", "--gpu", "24GB"),
            bar_s=1.0,
            exit_codes=(0, 1),
        ),
        Command(name="--version", arguments=(*program, "--version"), bar_s=0.3, bar_bytes=60 * MIB),
        # With torch installed the doctor waits for torch's import in a process of its own: no bar.
        Command(name="doctor", arguments=(*program, "doctor"), exit_codes=(0, 3)),
    )


def run_once(python: str, arguments: Sequence[str]) -> tuple[float, int, int]:
    """Seconds, peak resident bytes and exit code of one process, its output thrown away.

    Linux carries the parent's own resident size over into the child's peak, so this script imports little.
    """
    started = time.perf_counter()
    child = subprocess.Popen((python, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)  # wait4 has reaped it; Popen must not wait again
    return seconds, usage.ru_maxrss * RSS_UNIT, child.returncode


def measure(python: str, command: Command, runs: int, bare_s: float | None) -> Row:
    """The median of `runs` after one warm-up."""
    run_once(python, command.arguments)
    taken = [run_once(python, command.arguments) for _ in range(runs)]
    seconds = statistics.median(second for second, _, _ in taken)
    rss_bytes = max(rss for _, rss, _ in taken)
    code = taken[-1][2]
    met = (
        code in command.exit_codes
        and (command.bar_s is None or seconds <= command.bar_s)
        and (command.bar_bytes is None or rss_bytes <= command.bar_bytes)
    )
    return Row(
        name=command.name,
        seconds=seconds,
        ratio=seconds / (bare_s or seconds),
        rss_bytes=rss_bytes,
        exit_code=code,
        bar_s=command.bar_s,
        bar_bytes=command.bar_bytes,
        met=met,
    )


def line(row: Row) -> str:
    """One row of the table."""
    bars = [f"{row.bar_s:.1f} s"] if row.bar_s is not None else []
    bars += [f"{row.bar_bytes // MIB} MB"] if row.bar_bytes is not None else []
    verdict = "" if not bars and row.met else "  met" if row.met else f"  MISSED (exit {row.exit_code})"
    figures = f"{row.seconds:7.3f} s {row.ratio:6.1f} x {row.rss_bytes / MIB:7.1f} MB"
    return f"{row.name:30} {figures}   {' / '.join(bars) or '-':13}{verdict}"


def main(argv: Sequence[str] | None = None) -> int:
    """Time, print, and say whether every bar was met."""
    parser = argparse.ArgumentParser(description="times whole processes against a bare interpreter")
    parser.add_argument("--runs", type=int, default=7, help="runs per command after one warm-up (7)")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--only", help="only commands whose name has this in it")
    parser.add_argument("--python", default=sys.executable, help="the interpreter to start (this one)")
    parser.add_argument("--module", default="qlora_planner", help="the program, as python -m takes it")
    options = parser.parse_args(argv)
    bare, *rest = commands(options.module)
    rows = [measure(options.python, bare, options.runs, None)]
    print_rows = not options.json
    if print_rows:
        print(f"{'command':30} {'time':>9} {'ratio':>8} {'peak RSS':>10}   bar")
        print(line(rows[0]))
    for command in rest:
        if options.only and options.only not in command.name:
            continue
        rows.append(measure(options.python, command, options.runs, rows[0].seconds))
        if print_rows:
            print(line(rows[-1]), flush=True)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    return 1 if options.check and not all(row.met for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
