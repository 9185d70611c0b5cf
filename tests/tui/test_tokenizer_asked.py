"""A dataset that no tokenizer counts yet: the explorer asks for one, in its own words."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from qlora_planner.tui.app import Explorer
from qlora_planner.tui.screens.dialogs import TextScreen
from tests.tui.conftest import explorer, idle, open_model, painted, tell
from tests.tui.scenes import write_data


def test_a_dataset_that_nothing_counts_asks_for_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_data(tmp_path / "train.jsonl", 20)
    monkeypatch.chdir(tmp_path)  # a long path would break the question in two lines

    async def answer(app: Explorer, pilot: Pilot[None], text: str) -> None:
        app.screen.query_one(Input).value = text
        await pilot.press("enter")
        await idle(app, pilot)

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await pilot.press("6", "d")
        await pilot.pause()
        await answer(app, pilot, "train.jsonl")
        for wrong in (".", "gone"):
            assert isinstance(app.screen, TextScreen)
            shown = painted(app)
            assert "Whose tokenizer counts it?" in shown
            assert "--" not in shown.replace("──", "")
            await answer(app, pilot, wrong)
        await answer(app, pilot, "4")
        assert not app.under_dialog
        assert app.state.data is not None
        assert app.state.data.guessed
        await pilot.press("n")
        await pilot.pause()
        assert isinstance(app.screen, TextScreen)
        await answer(app, pilot, "0")
        assert app.state.data is not None

    tell(explorer(tmp_path / "tui.json"), story)
