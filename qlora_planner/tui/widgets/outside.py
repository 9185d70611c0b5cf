"""Text from outside on the screen: never markup, and nothing in it that a terminal would obey.

Panes and tables clean what they are given, character by character, so that every column stays where it is. `Clean` is
the last door: whatever another widget draws goes through it.
"""

from __future__ import annotations

from typing import Any

from rich.cells import cell_len
from rich.segment import Segment
from rich.text import Text
from textual.color import Color
from textual.filter import LineFilter
from textual.widgets import Static
from textual.widgets.option_list import Option

from qlora_planner.text import plain, screen


def clean(content: str | Text) -> Text:
    """`content` as text of as many characters, each control and direction mark a `?`; its styles stay."""
    if isinstance(content, str):
        return Text(screen(content))
    cleaned = screen(content.plain)
    if cleaned != content.plain:
        content = content.copy()
        content.plain = cleaned
    return content


def choice(says: str, key: str | None = None) -> Option:
    """A line of a list of choices; `key` is what it is known by."""
    return Option(clean(says), id=key)


class Pane(Static):
    """Text that is shown as it is."""

    def __init__(self, content: str | Text = "", *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(clean(content), markup=False, id=id, classes=classes)

    def update(self, content: Any = "", *, layout: bool = True) -> None:
        """Other text."""
        super().update(clean(content), layout=layout)


class Clean(LineFilter):
    """Lines in which nothing but characters is left; what has no width of its own goes without a trace."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Every segment, as wide as it was."""
        return [
            segment if segment.control or segment.text.isprintable() else Segment(
                "".join(char if char.isprintable() else plain(char) * cell_len(char) for char in segment.text),
                segment.style,
            )
            for segment in segments
        ]  # fmt: skip
