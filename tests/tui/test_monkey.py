"""Random keys end in no exception; what they would write stays in a folder of the test."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot

from qlora_planner.tui.app import Explorer
from tests.tui.conftest import explorer, idle, open_model, tell
from tests.tui.monkey import keys

SIZES = ((100, 30), (60, 20), (80, 24), (140, 45))


@pytest.mark.parametrize("seed", [1, 2])
def test_no_keys_break_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Explorer, "action_leave", lambda self: None)

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        for at, key in enumerate(keys(seed, 250)):
            app.simulate_key(key)
            if at % 10 == 9:
                await pilot.pause()
            if at % 60 == 59:
                await pilot.resize_terminal(*SIZES[at // 60 % len(SIZES)])
        await idle(app, pilot)
        assert app.is_running

    tell(explorer(tmp_path / "tui.json", "rtx-4090"), story)
