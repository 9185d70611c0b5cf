"""Models that are opened by what was typed: at the start, and one that has no profile yet."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable

from qlora_planner.errors import InputError
from qlora_planner.tui.app import Explorer
from qlora_planner.tui.control.child_process import Launch
from qlora_planner.tui.control.profiling import profile
from qlora_planner.tui.saved_state import SavedState, write_state
from qlora_planner.tui.screens.fit import FitScreen
from qlora_planner.tui.widgets.rows import ModelRow
from tests.tui import conftest
from tests.tui.conftest import SIGNS, document, explorer, idle, surveyed, table, tell

MODEL = "meta-llama/Llama-3.1-8B"
TINY = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 331,
    "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip


def test_a_model_of_the_command_line_is_opened_with_its_recommended_run(tmp_path: Path) -> None:
    write_state(tmp_path / "tui.json", SavedState(model="Qwen/Qwen2.5-7B", run=None))

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        assert app.state.model == MODEL
        assert app.current_mode == "run"
        assert app.state.run.to_dict() == {**app.state.run.to_dict(), **document(MODEL, "--gpu", "24GB")["options"]}

    tell(explorer(tmp_path / "tui.json", model="llama-3.1-8b"), story)


def test_a_model_that_means_nothing_is_refused_before_the_screen_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_planner.cli.tui import make_explorer

    with pytest.raises(InputError, match="no catalogue name"):
        make_explorer({"gpu": "24GB", "profiles": None, "model": "no such model"})


def test_a_new_folder_is_profiled_as_the_command_line_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await pilot.press("o", *"./mine", "enter")
        shown: set[str] = set()
        while not shown or not app.tasks.idle:
            await pilot.pause(0.05)
            shown.add(app.tasks.busy_with)
        await idle(app, pilot)
        assert any("profiling ./mine" in words for words in shown)
        assert app.state.model == "./mine", [note.message for note in app._notifications]
        assert app.state.subject is not None
        assert app.state.subject.profile.params > 0
        assert app.state.estimate is not None
        assert "torch" not in sys.modules or torch_was_there

    torch_was_there = "torch" in sys.modules
    tell(explorer(tmp_path / "tui.json"), story)


def test_a_folder_that_cannot_be_profiled_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text("import sys\nprint('a library talks', file=sys.stderr)\n"
                     "print('qlora-plan: ./x: is no model\\x1b[2J', file=sys.stderr)\nsys.exit(2)\n")  # fmt: skip
    monkeypatch.setattr(Launch, "program", (sys.executable, str(child)))
    heard: list[str] = []
    with pytest.raises(InputError) as fault:
        profile("./x", None, heard.append)
    assert str(fault.value) == heard[-1] == "./x: is no model?[2J"
    assert len(heard) == 1


def test_the_verb_takes_a_model() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "qlora_planner", "tui", "--help"], capture_output=True, text=True, check=True
    )
    assert "[MODEL]" in told.stdout


@pytest.mark.parametrize("moved", [False, True])
def test_the_list_opens_at_what_fits_best_unless_somebody_has_gone_to_a_row(
    moved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come in as they are worked out: what does not fit is painted first, and goes down as others come."""
    rows = surveyed("24GB")
    red = [row for row in rows if row.verdict == "does-not-fit"][:8]
    went_to: list[str | None] = []

    def slowly(_card: str, _recommend: bool) -> Iterator[ModelRow]:
        yield from red
        page, until = app.screen, time.monotonic() + 20
        assert isinstance(page, FitScreen)
        while not page.shown and time.monotonic() < until:
            time.sleep(0.01)
        if moved:
            app.call_from_thread(page.table.action_cursor_down)
            went_to.append(page.current())
        yield from [row for row in rows if row.verdict == "fits"][:40]

    monkeypatch.setattr(conftest, "surveyed", slowly)
    app = explorer(tmp_path / "tui.json")

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        page, models = app.screen, app.screen.query_one("#models", DataTable)
        assert isinstance(page, FitScreen)
        if moved:
            assert page.current() == went_to[0] in [row.model_id for row in red]
            return
        assert (models.cursor_row, models.scroll_y) == (0, 0)
        assert table(app, "#models")[0][0] == SIGNS["fits"]

    tell(app, story)
