"""A tour of one minute: a box over each place in turn that says what it is for; any step may be the last."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical

from qlora_planner.tui.screens.dialogs import Dialog
from qlora_planner.tui.widgets.outside import Pane

if TYPE_CHECKING:
    from qlora_planner.tui.app import Explorer

# The model that is opened where none is: small enough to fit nearly every card.
_EXAMPLE = "Qwen/Qwen2.5-1.5B"
STEPS = (
    ("fit", "Which models can this card train? ✓ fits, ≈ just fits, ✗ does not. GiB is what the usual QLoRA"
     " run of 2,048 tokens needs. / filters, g takes another card, Enter opens a model."),
    ("run", "One model. On the left what you can change: arrows choose a line and turn it. On the right what it does to"
     " memory, at once: the verdict, a bar against the card, the peak of each phase, and what the memory is for."),
    ("run", "Too much? f looks for the best settings that keep your sequence length, r for the best of any, u undoes."
     " p pins a run to compare it later."),
    ("frontier", "How long may sequences be? A row for each batch size: green fits. Enter on a cell takes it."),
    ("prices", "What does each setting cost? Memory and speed of changing one thing at a time. Enter changes it."),
    ("compare", "Pinned runs beside each other, on one card or several; the best of each column is marked."),
    ("data", "Your own data: d names a file. Shown are how long its rows are, and what cutting them costs and saves."),
    ("train", "Where the training libraries are installed, v tries the run for three steps and measures it, b trains."
     " Everywhere: c shows the command line of what you see, e exports it, ? lists the keys. That is all."),
)  # fmt: skip


class TourScreen(Dialog[int]):
    """One step; ends with the step to go to, or with nothing where the tour is over."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,space,right,l", "step(1)", "Next"),
        Binding("left,h,backspace", "step(-1)", "Back"),
        Binding("escape,q,i", "end", "End"),
    ]

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def compose(self) -> ComposeResult:
        """What the place is for, and the keys."""
        last = self._at == len(STEPS) - 1
        keys = "Enter ends the tour" if last else "Enter goes on, Esc ends the tour"
        with Vertical(classes="dialog tour"):
            yield Pane(Text(STEPS[self._at][1]))
            yield Pane(
                Text(f"{self._at + 1} of {len(STEPS)}; {keys}{'' if self._at == 0 else ', left goes back'}"),
                classes="keys",
            )

    def action_step(self, by: int) -> None:
        """The next one, or the one before."""
        self.end(self._at + by if 0 <= self._at + by < len(STEPS) else None if by > 0 else 0)


def show_tour(app: Explorer, at: int = 0) -> None:
    """Go to the place of a step and say what it is for; a model is opened where none is."""
    key, _ = STEPS[at]
    app.go(key)
    if key == "run" and app.state.subject is None:
        app.controller.open_model(_EXAMPLE)

    def ended(to: int | None) -> None:
        if to is not None:
            show_tour(app, to)

    app.push_screen(TourScreen(at), ended)


def remember(path: Path) -> None:
    """Write that the tour was seen; where that is not possible it is offered again."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
