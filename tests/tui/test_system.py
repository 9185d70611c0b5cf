"""The line that is always in sight, what is shown under a table of changes, and the tour."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from textual.pilot import Pilot

from qlora_planner.measure import nvml
from qlora_planner.report.parts.labels import gib
from qlora_planner.tui import app as app_module
from qlora_planner.tui.app import Explorer
from qlora_planner.tui.screens.tour import STEPS, TourScreen
from qlora_planner.units import GIB
from tests.measure.test_nvml import fake_driver
from tests.tui.conftest import explorer, idle, open_model, painted, tell, words


def test_without_a_card_here_the_line_says_what_the_planned_one_lets_a_run_use(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        assert app.state.estimate is not None and app.state.estimate.fit is not None
        usable = gib(app.state.estimate.fit.usable_bytes)
        for place in "1234567":
            await pilot.press(place)
            await idle(app, pilot)
            assert f"RTX 3090 planned: {usable} GiB usable" in painted(app)
            assert "used" not in words(app, "#about")

    tell(explorer(tmp_path / "tui.json", "rtx-3090"), story, (80, 24))


def test_a_card_that_is_here_is_read_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used_gib = iter(count(1))

    def reading(*_: Any) -> Any:
        used = next(used_gib) % 24 * GIB
        return SimpleNamespace(total=24 * GIB, free=24 * GIB - used, used=used, reserved=0)

    driver = fake_driver()
    driver.nvmlDeviceGetMemoryInfo = reading
    monkeypatch.setattr(nvml, "import_module", lambda _: driver)
    monkeypatch.setattr(app_module, "_READ_S", 0.05)

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        assert "RTX 4090 here: " in words(app, "#about")
        seen = set()
        for _ in range(200):
            seen.add(words(app, "#about").partition("here: ")[2])
            await pilot.pause(0.02)
        figures = [re.findall(r"(\d+)\.00 GiB used, (\d+)\.00 free", line) for line in seen]
        assert len(seen) > 2
        assert all(int(used) + int(free) == 24 for ((used, free),) in figures)

    tell(explorer(tmp_path / "tui.json", "8GB", cards_here=nvml.visible_devices), story, (80, 24))


def test_a_card_that_gives_no_figure_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = fake_driver()
    driver.nvmlDeviceGetMemoryInfo = None
    monkeypatch.setattr(nvml, "import_module", lambda _: driver)

    async def story(app: Explorer, _pilot: Pilot[None]) -> None:
        assert "NVML gives no figure of its memory" in words(app, "#about")

    tell(explorer(tmp_path / "tui.json", "8GB", cards_here=nvml.visible_devices), story)


@pytest.mark.parametrize("place", ["3", "4"])
def test_what_enter_would_take_is_shown_before(tmp_path: Path, place: str) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await pilot.press(place)
        await idle(app, pilot)
        await pilot.press("down")
        await idle(app, pilot)
        shown = words(app, "#preview")
        await pilot.press("enter")
        await idle(app, pilot)
        assert app.current_mode == "run"
        verdict = words(app, "#verdict")
        assert verdict.splitlines()[0] in shown
        assert " ".join(verdict.split()) in " ".join(shown.split())

    tell(explorer(tmp_path / "tui.json"), story)


def test_pinned_runs_are_drawn_at_one_scale(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        for card in ("24GB", "48GB"):
            app.controller.use_card(card)
            await idle(app, pilot)
            await pilot.press("p")
        await pilot.press("5")
        await idle(app, pilot)
        small, large = (line for line in words(app, "#preview").splitlines() if "█" in line)
        fits = [each.fit for each in app.state.pinned.value or () if each is not None and each.fit is not None]
        assert len(large) / len(small) == pytest.approx(fits[1].usable_bytes / fits[0].usable_bytes, rel=0.02)
        assert small.count("█") == large.count("█")

    tell(explorer(tmp_path / "tui.json"), story)


def test_the_tour_goes_through_the_places_and_is_offered_once(tmp_path: Path) -> None:
    seen = tmp_path / "config" / "tour-seen"

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        assert "i shows you around" in next(note.message for note in app._notifications)
        await pilot.press("i")
        for at, (place, says) in enumerate(STEPS, 1):
            await idle(app, pilot)
            assert isinstance(app.screen, TourScreen)
            assert (app.current_mode, f"{at} of {len(STEPS)}" in painted(app)) == (place, True)
            assert says.split()[0] in painted(app)
            await pilot.press("enter")
        await idle(app, pilot)
        assert not app.under_dialog
        assert app.state.model == "Qwen/Qwen2.5-1.5B"
        await pilot.press("i", "enter", "left", "escape")
        await idle(app, pilot)
        assert not app.under_dialog and app.current_mode == "fit"

    async def later(app: Explorer, _pilot: Pilot[None]) -> None:
        assert not list(app._notifications)

    tell(explorer(tmp_path / "tui.json", tour_path=seen), story, (80, 24))
    assert seen.is_file()
    tell(explorer(tmp_path / "other.json", tour_path=seen), later)


def test_the_tour_can_be_asked_for(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await pilot.pause()
        assert isinstance(app.screen, TourScreen)
        await pilot.press("escape")
        await pilot.pause()
        assert not app.under_dialog

    tell(explorer(tmp_path / "tui.json", tour=True, tour_path=tmp_path / "seen"), story)
    assert (tmp_path / "seen").is_file()
