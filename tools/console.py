"""What a command prints, for a page: run in this process, as a base install without torch answers it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from qlora_planner.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent
# 80 columns without colour, and nothing traced: what a page shows depends on no machine.
_SETTING = {"COLUMNS": "80", "NO_COLOR": "1", "QLORA_PLANNER_TRACE": "never", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Shown:
    """A paragraph of an answer: its number, and how many of its lines (None: all)."""

    paragraph: int
    lines: int | None = None


def console_block(command: str, *shown: Shown) -> str:
    """A fenced block with `command` and its answer, or the paragraphs `shown` of it; `...` for what is left out."""
    paragraphs = answer_of(command).rstrip().split("\n\n")
    lines: list[str] = []
    if not shown:
        shown = tuple(Shown(number) for number in range(len(paragraphs)))
    expected = 0
    for part in shown:
        own = paragraphs[part.paragraph].splitlines()
        if part.paragraph > expected:
            lines.append("...")
        elif lines and lines[-1] != "...":
            lines.append("")
        kept = own[: part.lines]
        lines += kept
        expected = part.paragraph + 1
        if len(kept) < len(own):
            lines.append("...")
    if expected < len(paragraphs) and lines[-1] != "...":
        lines.append("...")
    return "\n".join(["```console", f"$ {command}", *lines, "```"])


_answers: dict[str, str] = {}


def answer_of(command: str, *, again: bool = False) -> str:
    """Standard output of a command line of `qlora-plan`, typed in the root of the repository; kept unless `again`.

    Raises RuntimeError with what was said where there is none.
    """
    if command not in _answers or again:
        _answers[command] = _asked(command)
    return _answers[command]


def _asked(command: str) -> str:
    words = shlex.split(command)
    with _inside(ROOT):
        done = CliRunner().invoke(cli, words[1:], prog_name=words[0], env=_SETTING)
    if not done.stdout or done.exit_code in (2, 4):
        raise RuntimeError(f"{command}: exit code {done.exit_code}: {done.stderr}")
    return done.stdout


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
