"""The frames of a traceback, as Python, Jupyter, Colab, IPython and rich print them, through launchers' prefixes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from qlora_planner.diagnose.oom.records import Frame
from qlora_planner.diagnose.oom.text import line_around, prefix_of, shown

_HEADER = "Traceback (most recent call last)"
# Of a traceback, and of a text without one's head, so much before the message is read.
_BEFORE_CHARACTERS = 256 << 10
_LONGEST_LINE = 2_000
_MOST_FRAMES = 2_000
_PLAIN = re.compile(r'\s*File "([^"]{1,1000})", line (\d{1,9}), in (.+)')
# IPython 8: `File ~/x/module.py:1501, in Module._call_impl(self, *args)`; the function may be missing.
_IPYTHON = re.compile(r"\s*File ([^\"\s][^\"]{0,1000}?):(\d{1,9})(?:, in (.+))?$")
# IPython 7, as on Colab: `/usr/lib/x.py in forward(self, x)`, `<ipython-input-3-ab> in <module>`; the line is the
# arrow's.
_COLAB = re.compile(
    r"((?:[~/]|[A-Za-z]:\\)[^\"]{0,1000}\.pyx?|<ipython-input-[\w-]{1,80}>|/tmp/ipykernel\S{0,200}) in (\S.*)$"
)
_CELL = re.compile(r"(?:Cell|Input) (In ?\[\d{1,6}\])(?:, line (\d{1,9}))?(?:, in (.+))?$")
_RICH = re.compile(r"((?:[~/]|[A-Za-z]:\\)\S{1,1000}\.py):(\d{1,9}) in (\S{1,200})$")
_ARROW = re.compile(r"-{1,8}> {0,3}(\d{1,9})\b ?(.*)$")
_RICH_ARROW = re.compile(r"❱ {1,4}(\d{1,9})\b(.*)$")
_FORMS: tuple[tuple[re.Pattern[str], bool], ...] = (
    (_PLAIN, True), (_IPYTHON, False), (_COLAB, False), (_CELL, False), (_RICH, False),
)  # fmt: skip


def frames_before(text: str, start: int) -> tuple[Frame, ...]:
    """The frames of the traceback that ends in the message at `start`, the outermost first."""
    part = text[max(0, start - _BEFORE_CHARACTERS) : start]
    line, low = line_around(text, start)
    prefix = prefix_of(line) if low < start else ""
    lines: Sequence[str] = part.split("\n")
    if prefix and any(line.startswith(prefix.rstrip()) for line in lines):
        # Processes write into one another: only what the one that failed wrote.
        bare = prefix.rstrip()
        lines = [line[len(bare) :].removeprefix(" ") for line in lines if line.startswith(bare)]
    heads = [number for number, line in enumerate(lines) if _HEADER in line[:_LONGEST_LINE]]
    return tuple(_frames(lines[heads[-1] :] if heads else lines))[-_MOST_FRAMES:]


def _frames(lines: Sequence[str]) -> Iterator[Frame]:
    """The frames in their order; an arrow gives the one before it its line."""
    last: Frame | None = None
    wants_code = False
    for raw in lines:
        line = _unboxed(raw[:_LONGEST_LINE])
        arrow = _ARROW.match(line) or _RICH_ARROW.match(line)
        if arrow is not None and last is not None:
            last = _with(last, int(arrow[1]), _code(arrow[2]))
            wants_code = False
            continue
        frame, plain = _frame(line)
        if frame is not None:
            if last is not None:
                yield last
            last, wants_code = frame, plain
        elif wants_code and last is not None:
            code = _code(line)
            last = _with(last, last.line, None if code is None or code.startswith(("^", "~")) else code)
            wants_code = False
    if last is not None:
        yield last


def _frame(line: str) -> tuple[Frame | None, bool]:
    """The frame that a line tells, and whether its code is the next line."""
    for form, plain in _FORMS:
        match = form.match(line)
        if match is None:
            continue
        if form is _COLAB:
            file, number, function = match[1], "0", match[2]
        elif form is _CELL:
            file, number, function = f"Cell {match[1]}", match[2] or "0", match[3] or "<module>"
        else:
            file, number, function = match[1], match[2], match[3] or "<module>"
        return Frame(file=shown(file, 1000), line=int(number), function=_function(function)), plain
    return None, False


def _function(text: str) -> str:
    """`Module.forward(self, x)` as `Module.forward`: IPython prints arguments."""
    return shown(text.partition("(")[0], 200) or "<module>"


def _code(text: str) -> str | None:
    return shown(text.replace("│", " "), 300) or None


def _with(frame: Frame, line: int, code: str | None) -> Frame:
    return Frame(file=frame.file, line=line, function=frame.function, code=code)


def _unboxed(line: str) -> str:
    """A line of a traceback that rich draws in a box, without the box."""
    return line.strip().strip("│").strip() if "│" in line else line.rstrip()
