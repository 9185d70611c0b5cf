"""Small screens over the others: the card picker, a text, a choice, the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from qlora_planner.tui.widgets.moving import Choices
from qlora_planner.tui.widgets.outside import Pane, choice

Result = TypeVar("Result")


class Dialog(ModalScreen[Result | None]):
    """A screen that ends once, however many keys wait for it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("f1", "app.help", "Help", show=False)]

    def end(self, result: Result | None = None) -> None:
        """Close; does nothing where that was done."""
        if self.is_attached and self.is_current:
            self.dismiss(result)

    def action_end(self) -> None:
        """Close without a result."""
        self.end()


class CardScreen(Dialog[str]):
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
            yield Pane("A card: local, a size such as 24GB or 24564MiB, or a name", classes="title")
            yield Input(id="card", placeholder="rtx-4090")
            yield Choices(*map(_named, self._names), id="cards")

    def on_input_changed(self, event: Input.Changed) -> None:
        """Narrow the list."""
        wanted = event.value.lower().replace(" ", "")
        matching = [name for name in self._names if wanted in name.lower().replace("-", "") or wanted in name.lower()]
        self.query_one("#cards", OptionList).set_options(map(_named, matching))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """What was typed; the first of the list where that is what it starts."""
        self.end(event.value.strip() or None)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """What was chosen."""
        self.end(event.option.id)

    def action_into(self) -> None:
        """From the input into the list."""
        self.query_one("#cards", OptionList).focus()


def _named(card: str) -> Option:
    return choice(card, card)


class CommandScreen(Dialog[str]):
    """The equivalent command line."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,c,q", "end", "Close")]

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        """The line."""
        with Vertical(classes="dialog"):
            yield Pane("The same figures on the command line (copied where the terminal allows it)", classes="title")
            yield Pane(Text(self.text, style="cyan"), id="command")


class TextScreen(Dialog[str]):
    """One line of text; `check` says what is wrong with it, None for nothing."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "end", "Close")]

    def __init__(
        self, asks: str, value: str, *, hint: str = "", check: Callable[[str], str | None] = lambda _: None,
        empty: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self._asks, self._value, self._hint, self._check, self._empty = asks, value, hint, check, empty

    def compose(self) -> ComposeResult:
        """What is asked, and the line."""
        with Vertical(classes="dialog"):
            yield Pane(Text(self._asks), classes="title")
            yield Input(self._value, placeholder=self._hint, id="text")
            yield Pane(id="wrong")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """What was typed, where nothing is wrong with it."""
        text = event.value.strip()
        if not text and not self._empty:
            self.end()
            return
        wrong = self._check(text)
        if wrong is None:
            self.end(text)
        else:
            self.query_one("#wrong", Pane).update(Text(wrong, style="bold red"))


class ChoiceScreen(Dialog[str]):
    """One of a few things; `choices` are keys with what they say."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "end", "Close")]

    def __init__(self, asks: str, choices: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._asks, self._choices = asks, choices

    def compose(self) -> ComposeResult:
        """What is asked, and the choices."""
        with Vertical(classes="dialog"):
            yield Pane(Text(self._asks), classes="title")
            yield Choices(*(choice(says, key) for key, says in self._choices), id="choices")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """What was chosen."""
        self.end(event.option.id)
