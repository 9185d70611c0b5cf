"""A story per screen: the keys people press, and figures on the screen that are those of --json."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input

from qlora_planner.catalog.trainers import run_document
from qlora_planner.memory import PHASES
from qlora_planner.planner.records import Price
from qlora_planner.report.parts.labels import gib, mib
from qlora_planner.spec.run import RunConfig
from qlora_planner.tui.app import Explorer
from qlora_planner.tui.screens.dialogs import CardScreen, CommandScreen
from qlora_planner.tui.screens.export import ExportScreen
from qlora_planner.tui.screens.help import HelpScreen
from qlora_planner.tui.screens.prices import price_cells
from qlora_planner.tui.widgets.common import KnobList
from tests.tui.conftest import SIGNS, breakdown, document, explorer, idle, open_model, painted, table, tell, words

MODEL = "meta-llama/Llama-3.1-8B"


def shown_equals_json(app: Explorer) -> None:
    """Verdict, peak and every component on the Run screen, against the command that the explorer itself gives."""
    from qlora_planner.tui.command_line import command_line

    assert app.state.card is not None
    assert app.state.subject is not None
    told = document(*shlex.split(command_line(app.state.subject.profile.id, app.state.card, app.state.run))[1:])
    assert breakdown(app) == [
        *(mib(size) for size in told["components"].values()),
        mib(told["peak"]["device_bytes"]),
    ]
    assert told["fit"]["verdict"].replace("-", " ") in words(app, "#verdict").splitlines()[0]
    rows = [line.split() for line in words(app, "#phases").splitlines()]
    phases = {row[0]: row[2] for row in rows if row and row[0] in PHASES}
    assert phases == {
        phase["name"]: mib(phase["device_bytes"]) for phase in told["phases"] if phase["device_bytes"] is not None
    }
    assert [row[0] for row in rows if "peak" in row] == [told["peak"]["phase"]]


def test_fit(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        order = ("fits", "tight", "cannot-say", "does-not-fit", "will-not-run")
        models = sorted(document("--gpu", "24GB")["models"], key=lambda row: order.index(row["verdict"]))
        told = {row["model_id"]: row for row in models}
        shown = table(app, "#models")
        assert all(row[1] in name or row[1].split("…")[0] in name for name, row in zip(told, shown, strict=True))
        for row, fact in zip(shown, told.values(), strict=True):
            assert row[3].removeprefix(">") == gib(fact["peak_bytes"], 1)
            assert row[5] == ("-" if fact["longest_seq_len"] is None else f"{fact['longest_seq_len']:,}")
            assert row[0] == SIGNS[fact["verdict"]]
        fits = sum(row["verdict"] == "fits" for row in told.values())
        assert f"✓ {fits} fits" in words(app, "#tally")
        await pilot.press("slash", *"qwen2.5 fits")
        assert app.screen.query_one("#filter", Input).has_focus
        await pilot.pause()
        left = table(app, "#models")
        assert left
        assert all("qwen2.5" in row[1].lower() and row[0] == "✓" for row in left)
        await pilot.press("escape", "s", "s", "f")
        assert (app.state.sort, app.state.group) == ("memory", "family")
        assert app.screen.query_one("#models", DataTable).has_focus
        await pilot.press("escape")
        await pilot.pause()
        assert app.screen.query_one("#filter", Input).value == ""
        assert len(table(app, "#models")) == len(told) + len({row["family"] for row in told.values()})

    tell(explorer(tmp_path / "tui.json"), story)


def test_a_click_on_a_head_sorts_and_on_a_tab_goes_there(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        found = app.screen.query_one("#models", DataTable)
        for name, mark, key in (("GiB", "GiB▼", "peak_bytes"), ("longest", "longest▼", "longest_seq_len")):
            before = 0
            for column in found.columns.values():
                if str(column.label).startswith(name):
                    break
                before += column.get_render_width(found)
            await pilot.click("#models", offset=(before + 2, 0))
            await idle(app, pilot)
            assert mark in [str(column.label) for column in found.columns.values()]
            most = max(document("--gpu", "24GB")["models"], key=lambda row: row[key] or 0)
            assert most["model_id"] in (table(app, "#models")[0][1], app.screen.current())  # type: ignore[attr-defined]
        await pilot.click("#headline", offset=(29, 0))
        await idle(app, pilot)
        assert app.current_mode == "prices"
        await pilot.click("#headline", offset=(1, 0))
        await idle(app, pilot)
        assert app.current_mode == "fit"

    tell(explorer(tmp_path / "tui.json"), story)


def test_speeds_on_a_named_card(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        told = {row["model_id"]: row for row in document("--gpu", "rtx-4090")["models"]}
        await pilot.press("slash", *"llama-3.1-8b", "enter")
        await pilot.pause()
        row = next(row for row in table(app, "#models") if row[1] == MODEL)
        assert row[7] == f"{told[MODEL]['recommended']['tokens_per_s']:,.0f}"

    tell(explorer(tmp_path / "tui.json", "rtx-4090"), story)


def test_run(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        shown_equals_json(app)
        before = app.state.run
        await pilot.press("right", "right")
        await idle(app, pilot)
        assert app.state.run.seq_len > before.seq_len
        shown_equals_json(app)
        await pilot.press("u", "u")
        await idle(app, pilot)
        assert app.state.run == before
        assert (before.gradient_checkpointing, before.checkpoint_every) == (True, 8)
        await pilot.press(*["down"] * 6, "left")  # checkpointing of 1 layer in 4
        await idle(app, pilot)
        assert (app.state.run.gradient_checkpointing, app.state.run.checkpoint_every) == (True, 4)
        shown_equals_json(app)
        await pilot.press(*["right"] * 2)  # of none
        await idle(app, pilot)
        assert app.state.run.gradient_checkpointing is False
        shown_equals_json(app)
        await pilot.press("r")
        await idle(app, pilot)
        plan = document(MODEL, "--gpu", "24GB")
        assert app.state.run == RunConfig(**plan["options"])
        assert app.state.estimate is not None
        assert run_document(app.state.estimate.run) == plan["run"]
        shown_equals_json(app)
        await pilot.press("tab", "down", "down")
        await pilot.pause()
        line = app.state.estimate.lines[2]
        assert f"{line.size_bytes:,} bytes" in words(app, "#why")
        assert " ".join(line.why.split())[:30] in " ".join(words(app, "#why").split())

    tell(explorer(tmp_path / "tui.json"), story)


def test_a_knob_that_will_not_run_says_why_at_once(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await pilot.press(*["down"] * 8)  # attention
        for _ in range(3):
            await pilot.press("right")
        assert app.state.run.attention == "flash_attention_2"
        assert app.state.refusal is not None
        assert "7.5" in app.state.refusal
        assert "will not run" in words(app, "#says")
        assert app.state.refusal in words(app, "#says")
        await idle(app, pilot)
        shown_equals_json(app)
        assert app.state.estimate is not None
        assert app.state.estimate.verdict == "will-not-run"

    tell(explorer(tmp_path / "tui.json", "t4"), story)


def test_mouse_turns_a_knob(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        knobs = app.screen.query_one(KnobList)
        rank = app.state.run.rank
        await pilot.click(KnobList, offset=(knobs.size.width - 1, 3))
        await idle(app, pilot)
        assert (knobs.at, app.state.run.rank) == (3, 2 * rank)
        shown_equals_json(app)

    tell(explorer(tmp_path / "tui.json"), story)


def test_frontier_and_prices(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await pilot.press("r")
        await idle(app, pilot)
        plan = document(MODEL, "--gpu", "24GB")
        await pilot.press("3")
        await idle(app, pilot)
        shown = {row[0]: row[1] for row in table(app, "#grid")}
        assert shown == {
            f"{row['batch_size']}": "-" if row["seq_len"] is None else f"{row['seq_len']:,}" for row in plan["frontier"]
        }
        await pilot.press("ctrl+home", "home", "right", "enter")
        await idle(app, pilot)
        assert app.current_mode == "run"
        assert (app.state.run.batch_size, app.state.run.seq_len) == (1, plan["frontier"][0]["seq_len"])
        shown_equals_json(app)
        await pilot.press("u", "4")
        await idle(app, pilot)
        rows = table(app, "#prices")
        assert [row[1:3] for row in rows] == [list(price_cells(Price(**row))[1:3]) for row in plan["prices"]]
        await pilot.press("enter")
        await idle(app, pilot)
        changes = plan["prices"][0]["change"]
        assert {name: getattr(app.state.run, name) for name in changes} == changes

    tell(explorer(tmp_path / "tui.json"), story)


def test_compare_and_another_card(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await pilot.press("p", "p", "right", "p")
        await pilot.press("g")
        await pilot.pause()
        assert isinstance(app.screen, CardScreen)
        await pilot.press(*"rtx-3090", "enter")
        await idle(app, pilot)
        assert app.state.card is not None
        assert app.state.card.gpu.name == "rtx-3090"
        await pilot.press("p", "5")
        await idle(app, pilot)
        rows = table(app, "#pins")
        assert [row[2] for row in rows] == ["24GB", "24GB", "rtx-3090"]
        from qlora_planner.tui.command_line import command_line
        from qlora_planner.tui.core import card_of

        for row, pin in zip(rows, app.state.pins, strict=True):
            line = command_line(pin.model, card_of(pin.card), RunConfig(**dict(pin.run)))
            told = document(*shlex.split(line)[1:])
            assert row[3].lstrip("★") == gib(told["peak"]["device_bytes"])
            assert row[4].lstrip("★") == gib(told["fit"]["headroom_bytes"])
        await pilot.press("x")
        await idle(app, pilot)
        assert len(table(app, "#pins")) == len(app.state.pins) == 2
        await pilot.press("enter")
        await idle(app, pilot)
        assert app.current_mode == "run"
        assert app.state.run == RunConfig(**dict(app.state.pins[0].run))

    tell(explorer(tmp_path / "tui.json"), story)


def test_a_card_that_means_nothing_changes_nothing(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        place = app.state.card
        await pilot.press("g", *"rtx-9999", "enter")
        await idle(app, pilot)
        assert app.state.card is place
        assert any("rtx-9999" in note.message for note in app._notifications)

    tell(explorer(tmp_path / "tui.json"), story)


def test_command_and_export(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await pilot.press("c")
        await pilot.pause()
        assert isinstance(app.screen, CommandScreen)
        assert app.screen.text == "qlora-plan --gpu rtx-4090" == app.clipboard
        await pilot.press("escape")
        await open_model(app, pilot)
        await pilot.press("c")
        await pilot.pause()
        assert app.clipboard.startswith(f"qlora-plan estimate {MODEL} --gpu rtx-4090")
        await pilot.press("escape", "e")
        await pilot.pause()
        assert isinstance(app.screen, ExportScreen)
        await pilot.press("enter")
        await pilot.pause()
        assert app.screen.query_one(Input).value == "Llama-3.1-8B.plan.yaml"
        file = tmp_path / "run.yaml"
        app.screen.query_one(Input).value = str(file)
        await pilot.press("enter")
        await idle(app, pilot)
        checked = document("check", str(file))
        assert checked
        assert app.state.estimate is not None
        assert f"rank: {app.state.estimate.run.rank}" in file.read_text()
        await pilot.press("e", "down", "enter")
        await pilot.pause()
        assert app.screen.query_one(Input).value == "Llama-3.1-8B.trl.py"
        app.screen.query_one(Input).value = str(file)
        await pilot.press("enter")
        await pilot.pause()
        assert "is there already" in words(app, "#wrong")
        assert "rank:" in file.read_text()
        await pilot.press("enter")
        await idle(app, pilot)
        assert "SFTTrainer" in file.read_text()

    tell(explorer(tmp_path / "tui.json", "rtx-4090"), story)


def test_help_palette_themes_and_escape(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)
        await pilot.press("escape", "escape", "escape")
        assert app.is_running
        themes = []
        for _ in range(3):
            await pilot.press("t")
            themes.append(app.theme)
        assert themes == ["textual-light", "high-contrast", "textual-dark"]
        commands = list(app.get_system_commands(app.screen))
        assert all(command.help for command in commands)
        assert {"Fit", "Run", "Frontier", "Prices", "Compare", "Data", "Train", "Quit"} <= {
            command.title for command in commands
        }
        await pilot.press("ctrl+p")
        await pilot.pause()
        await pilot.press(*"frontier", "enter")
        await pilot.pause(0.5)
        await pilot.press("enter")
        await idle(app, pilot)
        assert app.current_mode == "frontier"
        assert "choose one in Fit" in words(app, "#note")

    tell(explorer(tmp_path / "tui.json"), story)


def test_sizes(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        for place in "12345":
            await pilot.press(place)
            await idle(app, pilot)
            assert "needs 80 x 24" not in painted(app)
        await pilot.press("2")
        await pilot.resize_terminal(60, 20)
        await pilot.pause()
        assert "60 x 20" in painted(app)
        assert "needs 80 x 24" in painted(app)
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert "sequence" in painted(app)
        assert "fits" in painted(app)

    tell(explorer(tmp_path / "tui.json"), story, (80, 24))


def test_without_colors_signs_remain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        strips = app.screen._compositor.render_strips()
        colors = [segment.style.color for strip in strips for segment in strip if segment.style and segment.style.color]
        triplets = [color.triplet for color in colors if color.triplet is not None]
        assert all(color.red == color.green == color.blue for color in triplets)
        assert {"✓", "≈"} <= {row[0] for row in table(app, "#models")}

    tell(explorer(tmp_path / "tui.json"), story)


def test_left_and_found_again(tmp_path: Path) -> None:
    state = tmp_path / "tui.json"
    kept: list[RunConfig] = []

    async def first(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await pilot.press("right", "p", "t")
        await idle(app, pilot)
        kept.append(app.state.run)
        await pilot.press("q")
        await pilot.pause()

    tell(explorer(state), first)
    assert json.loads(state.read_text())["model"] == MODEL

    async def second(app: Explorer, pilot: Pilot[None]) -> None:
        await idle(app, pilot)
        assert app.state.subject is not None
        assert app.state.subject.profile.id == MODEL
        assert app.state.run == kept[0]
        assert app.theme == "textual-light"
        assert len(app.state.pins) == 1
        await pilot.press("2")
        await idle(app, pilot)
        shown_equals_json(app)

    tell(explorer(state, None), second)
    state.write_text("{")

    async def third(app: Explorer, pilot: Pilot[None]) -> None:
        assert app.state.subject is None
        assert any("is not used" in note.message for note in app._notifications)

    tell(explorer(state), third)
