"""Lists and long texts that go by j and k too, as everything here does."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import OptionList


class Choices(OptionList):
    """A list to choose from."""

    NAME = "the list"
    SAYS = "Arrows or j and k move, Home and End go to its ends, Enter chooses."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "Down", show=False),
        Binding("k", "cursor_up", "Up", show=False),
    ]


class Scroll(VerticalScroll):
    """A text longer than its pane."""

    NAME = "the text"
    SAYS = "Arrows or j and k scroll, Home and End go to its ends."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "Down", show=False),
        Binding("k", "scroll_up", "Up", show=False),
    ]
