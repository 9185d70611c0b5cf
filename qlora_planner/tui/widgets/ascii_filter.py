"""The last door before the terminal where that shows ASCII alone: every other character becomes its nearest one."""

from __future__ import annotations

import unicodedata
from functools import cache

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_NEAREST = {
    **dict.fromkeys("─━═╌┄┈▁▂▔⎺⎽▃", "-"), **dict.fromkeys("│┃║╎┆┊▌▐▏▕▎▍▋▊▉", "|"),
    **dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼╔╗╚╝┏┓┗┛┣┫┳┻╋▛▜▙▟▘▝▖▗", "+"), **dict.fromkeys("█▇▆▅▄▀■", "#"),
    **dict.fromkeys("▓▒░", "="), **dict.fromkeys("·•∙●○◉", "."), "…": ".", "◀": "<", "▶": ">", "←": "<", "→": ">",
    "↑": "^", "↓": "v", "▲": "^", "▼": "v", "⏎": "<", "⭠": "<", "⭢": ">", "✓": "+", "✗": "x", "≈": "~", "⊘": "!",
    "×": "x", "≤": "<", "≥": ">", "“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "−": "-", "\xa0": " ",
}  # fmt: skip


@cache
def nearest(character: str) -> str:
    """One ASCII character for one of any kind; a question mark where nothing is near."""
    if character.isascii():
        return character
    letters = _NEAREST.get(character)
    if letters is None:
        bare = unicodedata.normalize("NFKD", character)[:1]
        letters = bare if bare.isascii() else "?"
    return letters


class Plain(LineFilter):
    """Lines in ASCII, as wide as they were but for characters of two columns, which become two."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Every segment with its characters replaced."""
        from rich.cells import cell_len

        return [
            segment if segment.text.isascii() else Segment(
                "".join(nearest(char) * max(1, cell_len(char)) if cell_len(char) else "" for char in segment.text),
                segment.style, segment.control,
            )
            for segment in segments
        ]  # fmt: skip
