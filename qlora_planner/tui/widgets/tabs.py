"""The line of places at the top, each of which a click goes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text
from textual import events
from textual.message import Message

from qlora_planner.tui.widgets.outside import Pane


class Tabs(Pane):
    """Numbered places in a line; `here` is the one that is shown. Says which was clicked and goes nowhere itself."""

    @dataclass
    class Clicked(Message):
        """Another place is wanted."""

        place: str

    def __init__(self, places: Sequence[tuple[str, str]], here: str, *, id: str) -> None:
        text, ends = Text(no_wrap=True, overflow="ellipsis"), []
        for number, (key, label) in enumerate(places, 1):
            text.append(f" {number} {label} ", style="reverse bold" if key == here else "dim")
            ends.append((len(text), key))
        super().__init__(text, id=id)
        self._ends = ends

    def on_click(self, event: events.Click) -> None:
        """To the place under the mouse."""
        clicked = next((key for end, key in self._ends if event.x < end), None)
        if clicked is not None:
            self.post_message(self.Clicked(clicked))
