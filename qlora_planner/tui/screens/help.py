"""Help: what the place is about, the keys of what has the focus, of the place, and of everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import DataTable, Input

from qlora_planner.tui.screens.base import PLACES, Page
from qlora_planner.tui.screens.dialogs import Dialog
from qlora_planner.tui.widgets.moving import Scroll
from qlora_planner.tui.widgets.outside import Pane

_WIDGETS: dict[type[Widget], tuple[str, str]] = {
    DataTable: ("the table", "Arrows move, Enter opens or applies what is under the cursor, a click does both."),
    Input: ("the input", "Type; Enter takes it, Esc goes back to the table."),
}
_EVERYWHERE = (
    ("1 to 7", ", ".join(label for _, label in PLACES)),
    ("Tab", "to the next part of the screen"),
    ("j k", "down and up; Home and End go to the ends"),
    ("g", "another card, real or simulated"),
    ("o", "open a model by name, Hub id or folder"),
    ("c", "show and copy the command line of what is on the screen"),
    ("e", "export: plan, TRL, notebook, accelerate, axolotl, LLaMA-Factory"),
    ("t", "the next theme: dark, light, high contrast"),
    ("Ctrl+P", "every command, described"),
    ("Esc", "close, clear, back; it never leaves the explorer"),
    ("i", "a tour of the places, one minute"),
    ("? F1", "this help, in dialogs too"),
    ("q", "leave; the place is kept for the next start"),
)
_NAMES = {
    "left": "left", "right": "right", "up": "up", "down": "down", "question_mark": "?", "slash": "/", "plus": "+",
    "minus": "-", "enter": "Enter", "escape": "Esc", "delete": "Del", "pageup": "PgUp", "pagedown": "PgDn",
    "home": "Home", "end": "End", "equals_sign": "=", "f1": "F1",
}  # fmt: skip


class HelpScreen(Dialog[str]):
    """A line per key."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,f1,q", "end", "Close")]

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.text = text

    @classmethod
    def of(cls, screen: Screen[Any]) -> HelpScreen:
        """The help of a screen as it is now."""
        text = Text()
        if isinstance(screen, Page):
            label = dict(PLACES)[screen.place_key]
            text.append(f"{label}\n", style="bold").append(f"{screen.SAYS}\n\n")
        focused = screen.focused
        if focused is not None:
            name, says = _described(focused)
            text.append(f"Here: {name}\n", style="bold").append(f"{says}\n")
            _keys(text, focused.BINDINGS, {})
            text.append("\n")
        if screen.BINDINGS:
            text.append("On this screen\n", style="bold")
            _keys(text, screen.BINDINGS, screen.explorer.keys if isinstance(screen, Page) else {})
            text.append("\n")
        text.append("Everywhere\n", style="bold")
        for keys, words in _EVERYWHERE:
            _line(text, keys, words)
        return cls(text)

    def compose(self) -> ComposeResult:
        """The text, which scrolls."""
        with Scroll(classes="dialog"):
            yield Pane(self.text)


def _described(widget: Widget) -> tuple[str, str]:
    says = getattr(widget, "SAYS", None)
    if says is not None:
        return getattr(widget, "NAME", type(widget).__name__), says
    return next(
        (described for kind, described in _WIDGETS.items() if isinstance(widget, kind)), (type(widget).__name__, "")
    )


def _keys(text: Text, bindings: list[Any], own: Mapping[str, str]) -> None:
    """A line a binding; `own` are the user's keys by names."""
    for binding in bindings:
        if isinstance(binding, Binding) and (binding.tooltip or binding.show):
            keys = " ".join(
                _NAMES.get(key.strip(), key.strip()) for key in own.get(binding.id or "", binding.key).split(",")
            )
            _line(text, keys, binding.tooltip or binding.description)


def _line(text: Text, keys: str, words: str) -> None:
    text.append(f"{keys:<11} ", style="bold cyan").append(f"{words}\n", style="not bold")
