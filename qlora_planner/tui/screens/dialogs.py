"""Small screens over the others: help, the card picker, the command line, a file to write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.command import CommandList, CommandPalette
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static

HELP = (
    ("1 to 5", "Fit, Run, Frontier, Prices, Compare"),
    ("/", "filter the models as you type (Fit)"),
    ("s  f", "sort, group (Fit)"),
    ("Enter", "open the model, take the cell, apply the price"),
    ("g", "another card, real or simulated"),
    ("up down", "another knob, another line"),
    ("left right", "turn the knob (Run); also a click on its arrows"),
    ("Tab", "from the knobs to the breakdown: the why of a line"),
    ("r  u", "take the recommended run, undo"),
    ("p", "pin the run for Compare"),
    ("c  e", "copy the command line, write a plan file"),
    ("t", "the next theme: dark, light, high contrast"),
    ("Ctrl+P", "every command, described"),
    ("Esc", "close, clear, back; it never leaves the explorer"),
    ("q", "leave; the place is kept for the next start"),
)


class Dialog(ModalScreen[str | None]):
    """A screen that ends once, however many keys wait for it."""

    def end(self, result: str | None = None) -> None:
        """Close; does nothing where that was done."""
        if self.is_attached and self.is_current:
            self.dismiss(result)

    def action_end(self) -> None:
        """Close without a result."""
        self.end()


class Palette(CommandPalette):
    """The command palette; keys that come before its list is laid out, or after it is closed, do nothing.

    textual 8.2's own raises KeyError for Page Up in the first case and ScreenStackError in the second.
    """

    def _action_command_list(self, action: str) -> None:
        if self.query_one(CommandList).size.height:
            super()._action_command_list(action)

    def dismiss(self, result: Any = None) -> AwaitComplete:
        """Close, once."""
        return super().dismiss(result) if self.is_attached and self.is_current else AwaitComplete()

    def _watch__list_visible(self) -> None:
        if self.query(CommandList):
            super()._watch__list_visible()

    async def _watch__show_busy(self) -> None:
        if self.query(CommandList):
            await super()._watch__show_busy()

    def _gather_commands(self, search_value: str) -> Any:
        # What was typed last may arrive when the list is gone.
        return super()._gather_commands(search_value) if self.is_current and self.query(CommandList) else None


class HelpScreen(Dialog):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,enter,q", "end", "Close")]

    def compose(self) -> ComposeResult:
        """A line per key."""
        text = Text("Keys\n\n", style="bold")
        for keys, says in HELP:
            text.append(f"{keys:<11}", style="bold cyan")
            text.append(f"{says}\n", style="not bold")
        with VerticalScroll(classes="dialog"):
            yield Static(text)


class CardScreen(Dialog):
    """A card by name or size: typed, or chosen from the list that typing narrows."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "end", "Close"),
        Binding("down", "into", "List", show=False),
    ]

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = names

    def compose(self) -> ComposeResult:
        """Input and list."""
        with Vertical(classes="dialog"):
            yield Static("A card: local, a size such as 24GB or 24564MiB, or a name", classes="title")
            yield Input(id="card", placeholder="rtx-4090")
            yield OptionList(*self._names, id="cards")

    def on_input_changed(self, event: Input.Changed) -> None:
        """Narrow the list."""
        wanted = event.value.lower().replace(" ", "")
        found = [name for name in self._names if wanted in name.lower().replace("-", "") or wanted in name.lower()]
        self.query_one("#cards", OptionList).set_options(found)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """What was typed; the first of the list where that is what it starts."""
        self.end(event.value.strip() or None)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """What was chosen."""
        self.end(str(event.option.prompt))

    def action_into(self) -> None:
        """From the input into the list."""
        self.query_one("#cards", OptionList).focus()


class CommandScreen(Dialog):
    """The equivalent command line."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,c,q", "end", "Close")]

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        """The line."""
        with Vertical(classes="dialog"):
            yield Static("The same figures on the command line (copied where the terminal allows it)", classes="title")
            yield Static(Text(self.text, style="cyan"), id="command")


class FileScreen(Dialog):
    """Where a plan file goes."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "end", "Close")]

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def compose(self) -> ComposeResult:
        """The name."""
        with Vertical(classes="dialog"):
            yield Static("Write this run as a plan file, for verify, check and train", classes="title")
            yield Input(self._name, id="file")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """What was typed."""
        self.end(event.value.strip() or None)
