"""Compare marks the best of what fits: the least peak, the most to spare, the most tokens a second."""

from __future__ import annotations

from pathlib import Path

from textual.pilot import Pilot

from qlora_planner.tui.app import Explorer
from tests.tui.conftest import explorer, idle, open_model, painted, tell


def test_the_best_figures_of_runs_that_fit_are_marked(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        for options in ({"batch_size": 1, "seq_len": 512}, {"batch_size": 2, "seq_len": 2048}, {"batch_size": 64}):
            app.controller.set_run(app.state.run.with_(checkpoint_every=None, **options))
            await idle(app, pilot)
            await pilot.press("p")
        await pilot.press("5")
        await idle(app, pilot)
        small, large, never = [line for line in painted(app).splitlines() if "--grad-accum" in line]
        assert (small.count("★"), large.count("★"), never.count("★")) == (2, 1, 0)

    tell(explorer(tmp_path / "tui.json", "rtx-4090"), story, (140, 40))
