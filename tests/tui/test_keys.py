"""Keys that mean the same everywhere, and what is shown while something is worked on."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, OptionList

from qlora_planner.session.data import DataSource
from qlora_planner.spec.run import RunConfig
from qlora_planner.tui.app import Explorer
from qlora_planner.tui.core import Subject
from qlora_planner.tui.screens.dialogs import CardScreen
from qlora_planner.tui.screens.help import HelpScreen
from qlora_planner.tui.widgets.common import KnobList
from qlora_planner.tui.widgets.data import Slider
from tests.tui.conftest import explorer, idle, open_model, painted, tell, words
from tests.tui.scenes import write_data


class Held:
    """A method of `Subject` that waits until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.go, real = threading.Event(), getattr(Subject, name)

        def held(subject: Subject, *given: Any, **more: Any) -> Any:
            assert self.go.wait(20)
            return real(subject, *given, **more)

        monkeypatch.setattr(Subject, name, held)


async def until(pilot: Pilot[None], holds: Any) -> None:
    """Until something holds."""
    for _ in range(200):
        if holds():
            return
        await pilot.pause(0.02)
    raise AssertionError("it never held")


@pytest.mark.parametrize("key", ["f", "r"])
def test_a_search_is_shown_and_never_overwrites_a_later_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        held = Held(monkeypatch, "plan")
        await pilot.press(key)
        await until(pilot, lambda: "looking for the best run" in words(app, "#about"))
        await pilot.press("right")
        edited = app.state.run
        held.go.set()
        await idle(app, pilot)
        assert app.state.run == edited
        assert any("changed meanwhile" in note.message for note in app._notifications)
        assert "looking" not in words(app, "#about")
        await pilot.press(key)
        await idle(app, pilot)
        assert app.state.run != edited or key == "f"

    tell(explorer(tmp_path / "tui.json"), story)


def test_figures_of_the_run_before_are_dim_until_the_new_ones_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        right = app.screen.query_one("#right")
        assert not right.has_class("stale")
        held = Held(monkeypatch, "estimate")
        await pilot.press("right")
        await until(pilot, lambda: right.has_class("stale"))
        held.go.set()
        await idle(app, pilot)
        assert not right.has_class("stale")

    tell(explorer(tmp_path / "tui.json"), story)


def test_run_is_drawn_whole_when_it_is_first_gone_to(tmp_path: Path) -> None:
    async def first(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await asyncio.sleep(0.1)
        shown.append(painted(app))
        await pilot.press("1", "q")

    async def second(app: Explorer, pilot: Pilot[None]) -> None:
        await pilot.press("2")
        await idle(app, pilot)
        await asyncio.sleep(0.1)
        assert painted(app) == shown[0]

    shown: list[str] = []
    tell(explorer(tmp_path / "tui.json"), first, (110, 34))
    tell(explorer(tmp_path / "tui.json"), second, (110, 34))


def test_j_k_home_and_end_on_every_place(tmp_path: Path) -> None:
    data = write_data(tmp_path / "train.jsonl", 50)

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        knobs = app.screen.query_one(KnobList)
        await pilot.press("j", "j", "k")
        assert knobs.at == 1
        await pilot.press("end", "home")
        assert knobs.at == 0
        await pilot.press("p", "right", "p", "1", "escape", "escape")
        for place in "145":
            await pilot.press(place)
            await idle(app, pilot)
            found = app.screen.query_one(DataTable)
            await pilot.press("home", "j")
            assert found.cursor_row == 1
            await pilot.press("k")
            assert found.cursor_row == 0
            await pilot.press("end")
            assert found.cursor_row == found.row_count - 1 > 0
            await pilot.press("home")
            assert found.cursor_row == 0
        await pilot.press("3")
        await idle(app, pilot)
        grid = app.screen.query_one(DataTable)
        row = grid.cursor_row
        await pilot.press("j")
        assert grid.cursor_row == row + 1
        await pilot.press("end")
        assert grid.cursor_coordinate == (row + 1, len(grid.columns) - 1)
        await pilot.press("6")
        await idle(app, pilot)
        slider = app.screen.query_one(Slider)
        await pilot.press("home", "k")
        await idle(app, pilot)
        assert slider.at == slider.stops[1]
        await pilot.press("j")
        await idle(app, pilot)
        assert slider.at == slider.stops[0]

    tell(explorer(tmp_path / "tui.json", data=DataSource(path=str(data), chars_per_token=4.0)), story)


def test_f1_is_the_help_of_places_and_dialogs(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        for place in "1234567":
            await pilot.press(place, "f1")
            await pilot.pause()
            assert isinstance(app.screen, HelpScreen)
            await pilot.press("f1")
            await pilot.pause()
            assert not app.under_dialog
        await pilot.press("g", "f1")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)
        await pilot.press("escape")
        await pilot.pause()
        assert isinstance(app.screen, CardScreen)
        await pilot.press("down", "j", "j", "k", "end", "home")
        assert app.screen.query_one(OptionList).highlighted == 0
        await pilot.press("enter")
        await idle(app, pilot)
        assert app.state.run == RunConfig()

    tell(explorer(tmp_path / "tui.json"), story)


@pytest.mark.parametrize(
    ("card", "says"),
    [("p100", "no kernels for Tesla P100"), ("v100-16gb", "no kernels for"), ("gb10", "has no memory of its own")],
)
def test_what_is_to_be_known_about_a_card_is_shown_wherever_it_is_chosen(tmp_path: Path, card: str, says: str) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        assert not app.screen.query_one("#card").display
        app.controller.use_card(card)
        await idle(app, pilot)
        assert says in words(app, "#card")
        assert "fix:" in words(app, "#card")
        app.controller.use_card("24GB")
        await open_model(app, pilot)
        app.controller.use_card(card)
        await idle(app, pilot)
        assert any(says in notification.message for notification in app._notifications)
        for _ in range(100):  # a plan that is being made tells what it knows of the card at its end
            if says in words(app, "#problems"):
                break
            await pilot.pause(0.05)
        assert says in words(app, "#problems")

    tell(explorer(tmp_path / "tui.json"), story)


def test_the_mark_of_what_is_not_traced_is_explained_where_it_stands(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        assert words(app, "#legend").endswith("; >: weights alone, no step is recorded")
        table = app.screen.query_one(DataTable)
        assert any(str(table.get_row_at(at)[3]).startswith(">") for at in range(table.row_count))
        await pilot.press("m")
        await idle(app, pilot)
        assert not app.screen.query_one("#legend").display

    tell(explorer(tmp_path / "tui.json"), story)
