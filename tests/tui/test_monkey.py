"""Random keys end in no exception; what they would write stays in a folder of the test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from textual.pilot import Pilot

from qlora_planner.session.data import DataSource
from qlora_planner.tui.app import Explorer
from qlora_planner.tui.control.child_process import Launch
from tests.tui.conftest import explorer, idle, open_model, tell
from tests.tui.monkey import keys
from tests.tui.scenes import write_data
from tests.wide import some

SIZES = ((100, 30), (60, 20), (80, 24), (140, 45))


@pytest.mark.parametrize("seed", some([1, 2], 2))
def test_no_keys_break_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Explorer, "action_leave", lambda self: None)
    monkeypatch.setattr(Launch, "program", (sys.executable, str(Path(__file__).with_name("child.py"))))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    data = DataSource(path=str(write_data(tmp_path / "train.jsonl", 300)), chars_per_token=4.0)

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        for at, key in enumerate(keys(seed, 250)):
            app.simulate_key(key)
            if at % 10 == 9:
                await pilot.pause()
            if at % 60 == 59:
                await pilot.resize_terminal(*SIZES[at // 60 % len(SIZES)])
        if app.launches.current is not None:
            app.launches.current.end(5)
        await idle(app, pilot)
        assert app.is_running

    tell(explorer(tmp_path / "tui.json", "rtx-4090", data=data), story)
