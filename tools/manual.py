"""`make manual`: the manual page of the program in roff, from what the program declares."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from qlora_planner import __version__
from qlora_planner.cli.main import EXAMPLES, EXIT_CODES, VERBS, cli
from tools.console import ROOT

PAGE = ROOT / "docs" / "qlora-plan.1"


def manual() -> str:
    """Every verb with its options, examples and exit codes."""
    group = click.Context(cli, info_name="qlora-plan")
    lines = [
        f'.TH QLORA\\-PLAN 1 "" "qlora\\-planner {_text(__version__)}" "User Commands"',
        ".SH NAME",
        f"qlora\\-plan, qlora\\-planner \\- {_text('GPU memory of QLoRA fine-tuning, before the night')}",
        ".SH SYNOPSIS",
        ".B qlora\\-plan",
        _text(" ".join(cli.collect_usage_pieces(group))),
        ".SH DESCRIPTION",
        *_paragraphs(cli.help or ""),
        ".SH EXAMPLES",
        *_entries(EXAMPLES),
        ".SH VERBS",
    ]
    for name in VERBS:
        command = cli.get_command(group, name)
        assert command is not None
        lines += _verb(command, click.Context(command, info_name=name, parent=group))
    return "\n".join([*lines, ".SH EXIT STATUS", *_entries(EXIT_CODES), ""])


def _verb(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f".SS {_text(' '.join((context.info_name or '', *command.collect_usage_pieces(context))))}"
    yield from _paragraphs(command.help or "")
    # Without --help, whose spellings click keeps from whoever asked first.
    options = [option for option in command.params if isinstance(option, click.Option)]
    yield from _entries([record for option in options if (record := option.get_help_record(context))])


def _paragraphs(text: str) -> Iterator[str]:
    for at, paragraph in enumerate(text.split("\n\n")):
        if at:
            yield ".PP"
        yield _text(" ".join(paragraph.split()))


def _entries(entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    for head, text in entries:
        yield from (".TP", f".B {_text(head)}", _text(" ".join(text.split())))


def _text(text: str) -> str:
    """As roff prints it: hyphens that can be copied, and no line that begins as a request does."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main(path: Path = PAGE) -> int:
    """Write it."""
    path.write_text(manual(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
