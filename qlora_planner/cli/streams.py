"""The two streams: stdout carries the answer and nothing else, stderr the talk. A reader that goes away is no error."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from qlora_planner.errors import RunError
from qlora_planner.report.parts.theme import NARROWEST, WIDEST, Theme
from qlora_planner.text import chatter, screen, short

PROGRAM = "qlora-plan"
_PIPED_WIDTH = 80


def answer(text: str) -> None:
    """Print the answer, cleaned for a terminal.

    The exit code stays the answer's own when its reader has gone, as after `| head`.
    Raises RunError when it cannot be written at all, to a full disk for instance.
    """
    answer_part(text + "\n")


def answer_part(text: str, *, joiners: bool = False) -> None:
    """Print a part of the answer at once, without a line end; see `answer`. `joiners` as in `text.screen`."""
    # Colours are ours alone: what draws them has cleaned the text between them, and only a terminal gets any.
    _write(screen(text, colour=_is_terminal(sys.stdout), joiners=joiners))


def _write(text: str) -> None:
    stream = sys.stdout
    if stream is None:  # closed by the shell, as `>&-` does
        return
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        gone = _has_gone(stream, error)
        _silence(stream)
        if gone:
            return
        raise RunError(f"the answer cannot be written: {error.strerror or error}") from None


def _has_gone(stream: TextIO, error: OSError) -> bool:
    """Whether nobody reads any more: a pipe without a reader, or a terminal that was closed, which no longer says that
    it is one."""
    if isinstance(error, BrokenPipeError):
        return True
    try:
        return error.errno == errno.EIO and stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False


def answer_json(document: Any) -> None:
    """Print one JSON document."""
    import json

    _write(json.dumps(document, indent=1) + "\n")  # ASCII: everything else is escaped, and stays what it is


def answer_csv(heads: list[str], rows: list[list[Any]]) -> None:
    """Print a table as CSV; an unknown is an empty field."""
    import csv
    from io import StringIO

    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    answer(out.getvalue().removesuffix("\n"))


def say(text: str) -> None:
    """One line to stderr, cleaned, and cut where nobody would read on."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or its reader has gone: nobody listens
        sys.stderr.write(f"{PROGRAM}: {short(text)}\n")
        sys.stderr.flush()


class _Guarded:
    """stderr, for libraries: their warnings and logs quote names and files, and a terminal obeys what it is sent."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(chatter(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def guarded_stderr() -> Iterator[None]:
    """What anybody writes to `sys.stderr` meanwhile is cleaned on its way."""
    stream = sys.stderr
    if stream is None or isinstance(stream, _Guarded):
        yield
        return
    guarded: Any = _Guarded(stream)
    sys.stderr = guarded
    try:
        yield
    finally:
        if sys.stderr is guarded:
            sys.stderr = stream


def drawing_stream() -> TextIO:
    """stderr itself, for what draws on a terminal with escape sequences of its own, over text that it has cleaned."""
    stream = sys.stderr
    return stream.stream if isinstance(stream, _Guarded) else stream


def _silence(stream: TextIO) -> None:
    """Let what is still buffered go nowhere: Python would complain about it at exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def theme_for_stdout(no_color: bool) -> Theme:
    """Colour and the terminal's width only where stdout is a terminal; NO_COLOR, TERM=dumb and `no_color` forbid it."""
    stream = sys.stdout
    encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "").replace("_", "")
    terminal = _is_terminal(stream)
    dumb = os.environ.get("TERM") == "dumb"
    return Theme(
        color=terminal and not (no_color or dumb or os.environ.get("NO_COLOR")),
        unicode=encoding.startswith("utf"),
        width=_terminal_width() if terminal else _PIPED_WIDTH,
    )


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream is not None and stream.isatty())
    except ValueError:  # closed
        return False


def _terminal_width() -> int:
    from shutil import get_terminal_size

    return max(NARROWEST, min(WIDEST, get_terminal_size((_PIPED_WIDTH, 24)).columns))


@contextmanager
def patience(text: str, quiet: bool, after_s: float = 1.0) -> Iterator[None]:
    """Say `text` when what runs inside takes longer than `after_s`: silence looks like a hang."""
    if quiet:
        yield
        return
    timer = threading.Timer(after_s, say, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
