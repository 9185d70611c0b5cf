"""Export: what the run is written as, and where; nothing is written over without a second word."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input, OptionList

from qlora_planner.tui.control.exporting import KINDS, file_name
from qlora_planner.tui.screens.dialogs import Dialog
from qlora_planner.tui.widgets.moving import Choices
from qlora_planner.tui.widgets.outside import Pane, choice


class ExportScreen(Dialog[tuple[str, str, bool]]):
    """Ends with kind, path and whether to write over what is there."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "end", "Close"),
        Binding("tab", "other", "Kind or file", show=False),
    ]

    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model
        self._kind = next(iter(KINDS))
        self._own = ""  # the name that was put in, as long as nobody typed another
        self._asked_over: str | None = None  # the path that is there, and that one was asked about

    def compose(self) -> ComposeResult:
        """Kinds, path, what is wrong."""
        with Vertical(classes="dialog"):
            yield Pane(Text(f"Export {self._model}: as what, and where"), classes="title")
            options = (choice(f"{kind:<14}{says}", kind) for kind, (says, _) in KINDS.items())
            yield Choices(*options, id="kinds")
            yield Input(id="file")
            yield Pane(Text("Enter on a kind goes to the file, Enter there writes it", style="dim"), id="wrong")

    def on_mount(self) -> None:
        """The first kind."""
        self.query_one("#kinds", OptionList).highlighted = 0
        self.query_one("#kinds", OptionList).focus()

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Another kind has another name, unless one was typed."""
        self._kind = event.option.id or self._kind
        file = self.query_one("#file", Input)
        if file.value == self._own:
            self._own = file.value = file_name(self._model, self._kind)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """To the file."""
        self.set_focus(self.query_one("#file", Input))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Write; what is there is asked about once."""
        path = event.value.strip()
        if not path:
            self._say("name a file")
            return
        there = Path(path).expanduser()
        if there.is_dir():
            self._say(f"{path} is a folder; name a file in it")
        elif there.exists() and self._asked_over != path:
            self._asked_over = path
            self._say(f"{path} is there already: Enter again writes over it")
        else:
            self.end((self._kind, str(there), there.exists()))

    def action_other(self) -> None:
        """From the kinds to the file and back."""
        kinds, file = self.query_one("#kinds", OptionList), self.query_one("#file", Input)
        self.set_focus(file if kinds.has_focus else kinds)

    def _say(self, text: str) -> None:
        self.query_one("#wrong", Pane).update(Text(text, style="bold yellow"))
