"""What a training needs beside its run: data, a folder, perhaps other weights, an end."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Input, Label

from qlora_planner.errors import InputError
from qlora_planner.train.rewarding.reward_line import check_rewards
from qlora_planner.tui.screens.dialogs import Dialog
from qlora_planner.tui.widgets.outside import Pane

_Field = tuple[str, str, str]
_FIELDS: tuple[_Field, ...] = (
    ("data", "data", "train.jsonl"), ("output", "run folder", "runs/first"),
    ("model", "weights", "the model's own; or a folder"), ("max-steps", "most steps", "all epochs"),
    ("learning-rate", "learning rate", "2e-4"),
)  # fmt: skip
_REWARD: _Field = ("reward", "reward", "rewards.py:length, or trl's own; several with spaces between")


def free_folder(model: str) -> str:
    """`runs/NAME`, with a number behind it where a run is there already."""
    name = Path(model.rstrip("/")).name
    folder, number = f"runs/{name}", 1
    while Path(folder).exists():
        number += 1
        folder = f"runs/{name}-{number}"
    return folder


class LaunchForm(Dialog[dict[str, str]]):
    """Ends with options of `train` by their names; empty ones are left out."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "end", "Close")]

    def __init__(self, model: str, data: str, *, toy: bool, rewarded: bool = False) -> None:
        super().__init__()
        self._model = model
        # A trainer that generates completions learns from what rewards them.
        self._fields = (*_FIELDS[:1], *([_REWARD] if rewarded else []), *_FIELDS[1:])
        self._values = {"data": data, "output": free_folder(model), "max-steps": "20" if toy else ""}

    def compose(self) -> ComposeResult:
        """A line per option."""
        with Vertical(classes="dialog"):
            yield Pane(Text(f"Train {self._model}: Tab goes on, Enter starts"), classes="title")
            for name, label, hint in self._fields:
                with Horizontal(classes="field"):
                    yield Label(label)
                    yield Input(self._values.get(name, ""), placeholder=hint, id=f"field-{name}", compact=True)
            yield Pane(id="wrong")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Start, where nothing is missing."""
        fields = {name: self.query_one(f"#field-{name}", Input).value.strip() for name, _, _ in self._fields}
        wrong = self._wrong(fields)
        if wrong is None:
            self.end({name: value for name, value in fields.items() if value})
        else:
            name, text = wrong
            self.query_one("#wrong", Pane).update(Text(text, style="bold red"))
            self.set_focus(self.query_one(f"#field-{name}", Input))

    def _wrong(self, fields: dict[str, str]) -> tuple[str, str] | None:
        if not fields["data"]:
            return "data", "name the samples to train on"
        if "reward" in fields:
            try:
                check_rewards(fields["reward"])
            except InputError as error:
                return "reward", str(error)
        if not fields["output"]:
            return "output", "name a folder for the run"
        if Path(fields["output"]).exists() and any(Path(fields["output"]).iterdir()):
            return "output", f"{fields['output']} is there already: name another folder"
        steps, rate = fields["max-steps"], fields["learning-rate"]
        if steps and not (steps.isdecimal() and int(steps) > 0):
            return "max-steps", "steps are a whole number"
        try:
            if rate and not 0 < float(rate) < 10:
                raise ValueError
        except ValueError:
            return "learning-rate", "a learning rate is a number, as 2e-4"
        return None
