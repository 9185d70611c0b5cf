"""Names, faults and logs from outside: whatever is in them is shown as it is, and reaches no terminal as a command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.style import Style
from rich.text import Text
from textual.color import Color
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Input

from qlora_planner.errors import InputError
from qlora_planner.session.data import DataSource
from qlora_planner.spec.run import RunConfig
from qlora_planner.tui.answer import Answer
from qlora_planner.tui.app import Explorer
from qlora_planner.tui.control.child_process import Launch
from qlora_planner.tui.saved_state import Pin
from qlora_planner.tui.screens.dialogs import CardScreen, ChoiceScreen, CommandScreen, TextScreen
from qlora_planner.tui.screens.export import ExportScreen
from qlora_planner.tui.screens.launch_form import LaunchForm
from qlora_planner.tui.widgets.outside import Clean, clean
from qlora_planner.tui.widgets.rows import ModelRow
from tests.tui.conftest import explorer, idle, open_model, painted, table, tell, words

MARKUP = "[/red]"
HOSTILE = (
    MARKUP, "[bold red", "[@click=app.quit]x[/]", "\x1b]52;c;cm0gLXJm\x07", "\x1b]0;title\x07", "\x1b[2J", "a\u202egnp",
    "a\r\nb\x9b1m", "\u200f\u2066x\ufeff",
)  # fmt: skip
ALL = " ".join(HOSTILE)


def shown(app: Explorer) -> str:
    """The screen, which must be printable whatever it shows."""
    found = painted(app)
    assert found.replace("\n", "").isprintable(), [char for char in found if not char.isprintable() and char != "\n"]
    return found


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.fault(
    "markup such as `[/red]` in the explorer's dialogs",
    does="shown as it is; nothing from outside is markup",
    exit="-",
    part="outside",
)
def test_a_card_typed_in_the_dialog_is_refused_in_words(tmp_path: Path, text: str) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await pilot.press("g")
        await pilot.pause()
        app.screen.query_one(Input).value = text
        await pilot.press("enter")
        await idle(app, pilot)
        assert app.is_running
        assert app._notifications
        shown(app)

    tell(explorer(tmp_path / "tui.json"), story)


def test_every_dialog_shows_hostile_text_as_it_is(tmp_path: Path) -> None:
    dialogs: list[Screen[Any]] = [
        CardScreen([ALL, *HOSTILE]), CommandScreen(ALL), TextScreen(ALL, ALL, check=lambda _: ALL),
        ChoiceScreen(ALL, [("stay", ALL)]), ExportScreen(ALL), LaunchForm(ALL, ALL, toy=True),
    ]  # fmt: skip

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        for dialog in dialogs:
            app.push_screen(dialog)
            await pilot.pause()
            assert MARKUP in shown(app) or isinstance(dialog, LaunchForm)
            await pilot.press("enter")
            await pilot.pause()
            shown(app)
            if app.under_dialog:
                dialog.dismiss(None)
                await pilot.pause()

    tell(explorer(tmp_path / "tui.json"), story)


def test_every_place_shows_hostile_text_as_it_is(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        state = app.state
        assert state.subject is not None
        state.subject.profile = replace(state.subject.profile, id=ALL)
        state.card = state.subject.card = replace(state.card, gpu=replace(state.card.gpu, label=ALL), note=ALL)
        row = ModelRow(model_id=f"llama-3.1-8b {ALL}", family=ALL, params=10**9, verdict="fits", note=ALL)
        state.survey = Answer(state.survey_inputs(), [row])
        state.group = "family"
        state.pins = [Pin(model=ALL, card=ALL, run=RunConfig(target_modules=ALL).to_dict())]
        state.refusal = ALL
        state.data_source = DataSource(path=ALL, chars_per_token=4.0)
        state.estimated = Answer(state.run_inputs(), error=InputError(ALL))
        state.surroundings = Answer(state.run_inputs(), error=InputError(ALL))
        state.counted = Answer(state.counted_inputs(), error=InputError(ALL))
        launch = app.launches.current = Launch(["verify", ALL])
        launch.log.append(ALL)
        launch.answer, launch.phase, launch.peaks = ALL, ALL, {ALL: None}
        launch.exit_code = 4
        for place in "1234567":
            await pilot.press(place)
            await pilot.pause()
            app.notify(ALL)
            await pilot.pause()
            assert shown(app)
        assert MARKUP in words(app, "#log")
        await pilot.press("1")
        await pilot.pause()
        assert MARKUP in " ".join(table(app, "#models")[0])
        launch.end()

    tell(explorer(tmp_path / "tui.json"), story)


@pytest.mark.fault(
    "a command line copied from the explorer", does="holds no control character", exit="-", part="outside"
)
def test_the_clipboard_gets_no_control_character(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        assert app.state.subject is not None
        app.state.subject.model = "\x1b[201~\r\nrm -rf x"
        await pilot.press("c")
        await pilot.pause()
        assert app.clipboard.isprintable()

    tell(explorer(tmp_path / "tui.json"), story)


def test_cleaning_keeps_length_and_styles() -> None:
    text = Text("a\x1bb\u202e", style="bold").append("c\n", style="red")
    found = clean(text)
    assert found.plain == "a?b?c\n"
    assert found.spans == text.spans


def test_the_last_door_keeps_the_width_of_a_line() -> None:
    from rich.segment import Segment

    line = [Segment("a\u202eb\x1b", Style(bold=True)), Segment("语", None)]
    found = Clean().apply(line, Color(0, 0, 0))
    assert "".join(segment.text for segment in found).isprintable()
    assert sum(segment.cell_length for segment in found) == sum(segment.cell_length for segment in line)
