"""How every screen looks: styled pieces of text, verdict marks, memory bars, and the one place that colours them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qlora_planner.text import plain as cleaned

# A line is pieces of text, each with the style that a colour terminal gives it.
Piece = tuple[str, str]
Line = list[Piece]

# Tables need this much; a narrower terminal wraps them.
NARROWEST = 72
WIDEST = 100

VERDICT_WORDS = {
    "fits": "fits",
    "tight": "tight",
    "does-not-fit": "does not fit",
    "will-not-run": "will not run",
    "cannot-say": "cannot say",
}
_VERDICT_STYLES = {
    "fits": "green",
    "tight": "yellow",
    "does-not-fit": "red",
    "will-not-run": "magenta",
    "cannot-say": "cyan",
}
_GLYPHS = {
    "fits": ("✓", "+"),
    "tight": ("≈", "~"),
    "does-not-fit": ("✗", "x"),
    "will-not-run": ("⊘", "!"),
    "cannot-say": ("?", "?"),
}

# What a memory bar is made of, in the order in which it is drawn: label, style, block, ASCII.
SEGMENTS = {
    "weights": ("weights", "bright_blue", "█", "#"),
    "training": ("training", "cyan", "▓", "="),
    "activations": ("activations", "yellow", "▒", "+"),
    "overhead": ("overhead", "magenta", "░", "-"),
}
_FREE = ("·", ".")
_EDGE = ("┃", "|")
_LEAST_ROOM = 16


@dataclass(frozen=True, slots=True, kw_only=True)  # no record: `--version` and `--help` need no msgspec
class Theme:
    """What the terminal can show. `width` is the number of columns that a line may fill."""

    color: bool = False
    unicode: bool = False
    width: int = 80

    def glyph(self, verdict: str | None) -> str:
        """The mark of a verdict; a question mark where there is none."""
        pair = _GLYPHS.get(verdict or "", ("?", "?"))
        return pair[0] if self.unicode else pair[1]

    def sign(self, fancy: str, plain: str) -> str:
        """`fancy` where the terminal has it."""
        return fancy if self.unicode else plain

    @property
    def ellipsis(self) -> str:
        """What stands for text that was cut."""
        return self.sign("…", "..")

    def cut(self, text: str, width: int) -> str:
        """`text` in at most `width` columns, shortened in the middle, where names differ least."""
        if len(text) <= width:
            return text
        mark = self.ellipsis
        keep = max(0, width - len(mark))
        head = (keep + 1) // 2
        return text[:head] + mark + text[len(text) - (keep - head) :] if keep else text[:width]

    def bar(self, parts: Sequence[tuple[str, int]], whole: int, width: int) -> Line:
        """Bytes of `SEGMENTS` names against `whole`; what is over it stands behind the card's edge."""
        used = sum(size for _, size in parts)
        scale = max(whole, used, 1)
        line: Line = []
        drawn = total = 0
        for name, size in parts:
            total += max(0, size)
            cells = min(width, round(width * total / scale)) - drawn
            if cells > 0:
                _, style, block, ascii_block = SEGMENTS[name]
                line.append(((block if self.unicode else ascii_block) * cells, style))
                drawn += cells
        edge = round(width * whole / scale)
        if used > whole:
            return _mark(line, min(edge, width - 1), self.sign(*_EDGE))
        if drawn < width:
            line.append((self.sign(*_FREE) * (width - drawn), "dim"))
        return line

    def gauge(self, used: int, whole: int, width: int, style: str) -> Line:
        """One figure against another in one colour; full means over."""
        cells = min(width, round(width * used / whole)) if whole > 0 else width
        block, free = self.sign("█", "#"), self.sign(*_FREE)
        return [(block * cells, style), (free * (width - cells), "dim")]

    def wrap(self, text: str, indent: int = 0, first: str = "", style: str = "", first_style: str = "") -> list[Line]:
        """`text` over as many lines as it needs, behind `first` and then `indent` columns.

        Options such as `--seq-len` are not broken at their hyphens, so that they can be copied.
        """
        head = first.ljust(indent)
        if len(head) + _LEAST_ROOM > self.width and first:
            # What comes first leaves no room beside it: it gets lines of its own.
            above = self.wrap(first.strip(), 2, "  ", style=first_style)
            return [*above, *self.wrap(text, min(indent, self.width - _LEAST_ROOM), style=style)]
        room = self.width - len(head)
        pieces = textwrap.wrap(text, room, break_long_words=True, break_on_hyphens=False) or [""]
        lines: list[Line] = [[(head, first_style), (pieces[0], style)]]
        lines += [[(" " * indent, ""), (piece, style)] for piece in pieces[1:]]
        return lines

    def render(self, lines: Iterable[Line]) -> str:
        """The lines as text, coloured if this theme is; no newline at the end."""
        if not self.color:
            return "\n".join(plain(line) for line in lines)
        return _in_color(list(lines))


def verdict_style(verdict: str | None) -> str:
    """The colour of a verdict."""
    return _VERDICT_STYLES.get(verdict or "", "")


def plain(line: Line) -> str:
    """A line without its styles, cleaned."""
    return cleaned("".join(text for text, _ in line)).rstrip()


def columns(row: Sequence[Piece], widths: Sequence[int], left: frozenset[int], gap: int = 2) -> Line:
    """One table row: columns in `left` start at their left edge, the others end at their right."""
    line: Line = []
    for index, ((text, style), width) in enumerate(zip(row, widths, strict=True)):
        line.append((text.ljust(width) if index in left else text.rjust(width), style))
        line.append((" " * gap, ""))
    return line[:-1]


def _mark(line: Line, at: int, mark: str) -> Line:
    """Put `mark` in one column of a line."""
    marked: Line = []
    start = 0
    for text, style in line:
        end = start + len(text)
        if start <= at < end:
            marked += [(text[: at - start], style), (mark, "bold red"), (text[at - start + 1 :], "red")]
        else:
            marked.append((text, "red" if start > at else style))
        start = end
    return [piece for piece in marked if piece[0]]


def _in_color(lines: list[Line]) -> str:
    # Here, not above: a piped answer does not wait for rich.
    from io import StringIO

    from rich.console import Console
    from rich.text import Text

    out = StringIO()
    # Whether there is colour was decided when the theme was made; the environment has no second say.
    console = Console(
        file=out, force_terminal=True, no_color=False, color_system="standard", highlight=False, legacy_windows=False
    )
    for line in lines:
        console.print(Text.assemble(*((cleaned(text), style) for text, style in line)), soft_wrap=True)
    return out.getvalue().removesuffix("\n")
