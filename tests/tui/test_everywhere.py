"""What holds on every place: ASCII alone where asked, help, Esc, command line, exports; and knobs that are typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input

from qlora_planner.catalog.trainers import run_document
from qlora_planner.spec.run import RUN_FIELDS, RunConfig
from qlora_planner.tui.app import Explorer
from qlora_planner.tui.control.exporting import KINDS
from qlora_planner.tui.knobs import KNOBS, changed
from qlora_planner.tui.screens.dialogs import CommandScreen, TextScreen
from qlora_planner.tui.screens.export import ExportScreen
from qlora_planner.tui.screens.help import HelpScreen
from qlora_planner.tui.widgets.ascii_filter import nearest
from qlora_planner.tui.widgets.common import KnobList
from tests.tui.conftest import SIGNS, document, explorer, idle, open_model, painted, table, tell, words
from tests.tui.scenes import staged
from tests.wide import some

MODEL = "meta-llama/Llama-3.1-8B"


@pytest.mark.parametrize("size", some([(80, 24), (120, 40)], 2), ids=lambda size: f"{size[0]}x{size[1]}")
def test_ascii_alone_help_and_escape_on_every_place(tmp_path: Path, size: tuple[int, int]) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        for place in "1234567":
            await pilot.press(place)
            await idle(app, pilot)
            shown = painted(app)
            assert shown.isascii(), {char for char in shown if not char.isascii()}
            assert "? Help" in shown
            assert "q Quit" in shown
            await pilot.press("question_mark")
            await pilot.pause()
            assert isinstance(app.screen, HelpScreen)
            assert "Everywhere" in app.screen.text.plain
            assert painted(app).isascii()
            await pilot.press("escape", "c")
            await pilot.pause()
            assert isinstance(app.screen, CommandScreen)
            assert app.clipboard == app.screen.text
            assert app.clipboard.startswith("qlora-plan ")
            await pilot.press("escape", "e")
            await pilot.pause()
            assert isinstance(app.screen, ExportScreen)
            await pilot.press("escape", "escape", "escape")
            await pilot.pause()
            assert app.is_running

    with staged(tmp_path) as asked:
        tell(explorer(tmp_path / "tui.json", data=asked, plain=True), story, size)


def test_no_table_measures_itself(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await pilot.press("p", "right", "p")
        for place in "1345":
            await pilot.press(place)
            await idle(app, pilot)
            found = app.screen.query_one(DataTable)
            columns = list(found.columns.values())
            assert found.row_count
            assert not [str(column.label) for column in columns if column.auto_width]
            if place != "1":  # Fit cuts names to its widths
                for row in range(found.row_count):
                    cells = zip(found.get_row_at(row), columns, strict=True)
                    assert all(cell.cell_len <= column.width for cell, column in cells)

    tell(explorer(tmp_path / "tui.json"), story, (80, 24))


def test_nearest_is_one_ascii_character() -> None:
    assert {nearest(char) for char in "█▓│─╭✓≈é语"} == {"#", "=", "|", "-", "+", "~", "e", "?"}


def test_every_option_of_a_run_has_a_knob() -> None:
    beside = {"method", "double_quant"}  # those are part of `quant`
    beside |= {"image_tokens"}  # follows from `image_size`
    beside |= {"checkpoint_every"}  # is part of `gradient_checkpointing`
    # No traces of these ship, and nothing is traced here: they are given on the command line.
    beside |= {"checkpoint_offload", "loss_kernel", "expert_quant"}
    beside |= {"vllm", "vllm_gpu_memory_utilization", "vllm_enable_sleep_mode"}
    # Of several cards, which are named with them.
    beside |= {"parallel", "quant_storage", "reshard_after_forward", "load_on", "ddp_backend"}
    assert {knob.name for knob in KNOBS} == set(RUN_FIELDS) - beside


def test_a_knob_of_a_task_is_there_where_the_trainer_has_it(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        knobs = app.screen.query_one(KnobList)
        plain = [knob.name for knob in knobs.knobs]
        assert not {"num_generations", "precompute_ref_log_probs", "prompt_len"} & set(plain)
        app.controller.set_run(app.state.run.with_(trainer="trl-grpo", batch_size=8))
        await idle(app, pilot)
        assert {"prompt_len", "completion_len", "num_generations"} <= {knob.name for knob in knobs.knobs}
        knobs.at = next(index for index, knob in enumerate(knobs.knobs) if knob.name == "num_generations")
        await pilot.press("right", "right")
        await idle(app, pilot)
        assert app.state.run.num_generations == 4
        # Back to a trainer without them: the option goes, and the cursor stays inside the list.
        app.controller.turn(next(knob for knob in KNOBS if knob.name == "trainer"), -1)
        await idle(app, pilot)
        app.controller.set_run(changed(app.state.run, {"trainer": "trl-sft"}))
        await idle(app, pilot)
        assert app.state.run.num_generations is None
        assert [knob.name for knob in knobs.knobs] == plain and knobs.at < len(plain)

    tell(explorer(tmp_path / "tui.json"), story)


def test_typed_values(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        knobs = app.screen.query_one(KnobList)
        for name, text, value in (
            ("seq_len", "3k", 3072), ("batch_size", "3", 3), ("rank", "24", 24), ("grad_accum", "5", 5),
            ("target_modules", "q_proj, v_proj", "q_proj,v_proj"), ("lora_dropout", "0.2", 0.2),
            ("stack", "trl=1.13", {"trl": "1.13"}), ("eval_batch_size", "none", None),
        ):  # fmt: skip
            knobs.at = next(index for index, knob in enumerate(KNOBS) if knob.name == name)
            await pilot.press("enter")
            await pilot.pause()
            assert isinstance(app.screen, TextScreen), name
            app.screen.query_one(Input).value = text
            await pilot.press("enter")
            await idle(app, pilot)
            assert getattr(app.state.run, name) == value
        knobs.at = 0
        before = app.state.run
        for wrong in ("many", "0", "-4"):
            await pilot.press("enter")
            await pilot.pause()
            app.screen.query_one(Input).value = wrong
            await pilot.press("enter")
            await pilot.pause()
            assert words(app, "#wrong")
            await pilot.press("escape")
        assert app.state.run == before
        assert "3,072" in painted(app)

    tell(explorer(tmp_path / "tui.json"), story)


def test_fit_keeps_the_length(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        app.controller.set_run(RunConfig(seq_len=8192, batch_size=16))
        await idle(app, pilot)
        assert app.state.estimate is not None
        assert app.state.estimate.verdict == "does-not-fit"
        await pilot.press("f")
        await idle(app, pilot)
        told = document(MODEL, "--gpu", "24GB", "--seq-len", "8192")
        assert app.state.run.seq_len == 8192
        assert run_document(app.state.estimate.run) == told["run"]

    tell(explorer(tmp_path / "tui.json"), story)


def test_a_column_per_size_of_card(tmp_path: Path) -> None:

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await pilot.press("m")
        await idle(app, pilot)
        await pilot.press("slash", *"llama-3.1", "enter")
        await pilot.pause()
        heads = [str(column.label) for column in app.screen.query_one(DataTable).columns.values()]
        shown = {row[1]: row for row in table(app, "#models")}
        for card in ("8GB", "48GB"):
            told = {row["model_id"]: row for row in document("--gpu", card)["models"]}
            for name, row in shown.items():
                start, _, end = name.partition("…")
                (fact,) = (fact for known, fact in told.items() if start in known and known.endswith(end or start))
                assert row[heads.index(card)].split()[0] == SIGNS[fact["verdict"]]

    tell(explorer(tmp_path / "tui.json"), story)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_export_is_written(tmp_path: Path, kind: str) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await pilot.press("slash", *"llama-3.1-8b", "enter", "e")  # from Fit: the row under the cursor
        await pilot.pause()
        await pilot.press(*["down"] * list(KINDS).index(kind), "enter")
        await pilot.pause()
        file = tmp_path / app.screen.query_one("#file", Input).value
        app.screen.query_one("#file", Input).value = str(file)
        await pilot.press("enter")
        await idle(app, pilot)
        assert file.is_file(), [note.message for note in app._notifications]
        if kind != "accelerate":
            assert "Llama-3.1-8B" in file.read_text()

    tell(explorer(tmp_path / "tui.json"), story)
