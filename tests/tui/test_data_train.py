"""Stories of the Data and the Train place."""

from __future__ import annotations

import json
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from qlora_planner.session.data import DataSource
from qlora_planner.tui import commands
from qlora_planner.tui.app import Explorer
from qlora_planner.tui.control.child_process import Launch
from qlora_planner.tui.control.readiness import Readiness
from qlora_planner.tui.screens.dialogs import ChoiceScreen, TextScreen
from qlora_planner.tui.screens.launch_form import LaunchForm
from qlora_planner.tui.widgets.data import Histogram, Slider
from qlora_planner.units import format_gib
from tests.tui.conftest import document, explorer, idle, open_model, tell, words
from tests.tui.scenes import staged, write_data


def test_data_shows_what_plan_answers(tmp_path: Path) -> None:
    data = write_data(tmp_path / "train.jsonl", 500)

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await pilot.press("6")
        await idle(app, pilot)
        await pilot.press(*["left"] * 6)
        await idle(app, pilot)
        line = commands.line(app)
        assert f"--data {data}" in line
        told = document(*shlex.split(line)[1:])
        facts, run = told["data"], told["data"]["run"]
        assert run["seq_len"] == app.state.cut == app.screen.query_one(Slider).at < 2048
        bins = app.screen.query_one(Histogram).bins
        assert [list(column) for column in zip(*bins, strict=True)] == [
            facts["histogram"]["edges"][: len(bins)], facts["histogram"]["rows"],
        ]  # fmt: skip
        shown = words(app, "#percentiles")
        assert all(f"{length:,}" in shown for length in facts["length_percentiles"].values())
        cut = " ".join(words(app, "#cut").split())
        assert f"cuts {run['cut']['rows_cut']} rows" in cut
        assert f"{run['cut']['tokens_lost']:,} tokens" in cut
        assert f"{run['steps_per_epoch']} steps" in cut
        assert f"{run['worst_batch']['tokens']:,} tokens" in cut
        assert app.state.data_view is not None
        assert app.state.data_view.peak_bytes == told["estimate"]["peak"]["device_bytes"]
        assert format_gib(app.state.data_view.saved_bytes) in cut
        await pilot.press("a")
        await idle(app, pilot)
        assert app.state.run.seq_len == app.state.cut
        await pilot.press("u")
        await idle(app, pilot)
        assert app.state.run.seq_len == 2048

    tell(explorer(tmp_path / "tui.json", data=DataSource(path=str(data), chars_per_token=4.0)), story)


def test_the_slider_follows_the_mouse(tmp_path: Path) -> None:
    data = write_data(tmp_path / "train.jsonl", 200)

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await pilot.press("6")
        await idle(app, pilot)
        slider = app.screen.query_one(Slider)
        await pilot.click(Slider, offset=(0, 0))
        await idle(app, pilot)
        assert app.state.cut == slider.at == slider.stops[0]
        await pilot.press("end")
        await idle(app, pilot)
        assert app.state.cut == slider.stops[-1]
        assert "nothing is cut" in words(app, "#cut")

    tell(explorer(tmp_path / "tui.json", data=DataSource(path=str(data), chars_per_token=4.0)), story)


def test_a_dataset_is_named_in_the_screen_and_a_bad_one_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"other": 1}\n')

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await pilot.press("6")
        await pilot.pause()
        assert "d names one" in words(app, "#note")
        await open_model_from(app, pilot)
        for name in ("gone.jsonl", "bad.jsonl"):
            await pilot.press("d")
            await pilot.pause()
            assert isinstance(app.screen, TextScreen)
            app.screen.query_one(Input).value = str(tmp_path / name)
            await pilot.press("enter")
            await idle(app, pilot)
            said = words(app, "#note")
            assert name in said
            assert "\n" not in said
            assert app.state.data is None

    async def open_model_from(app: Explorer, pilot: Pilot[None]) -> None:
        await pilot.press("1")
        await open_model(app, pilot)
        await pilot.press("6")
        await idle(app, pilot)

    tell(explorer(tmp_path / "tui.json"), story)


async def begin(app: Explorer, pilot: Pilot[None]) -> None:
    """Start a training by its form."""
    await pilot.press("b")
    await pilot.pause()
    assert isinstance(app.screen, LaunchForm)
    assert app.screen.query_one("#field-output", Input).value == "runs/Llama-3.1-8B"
    await pilot.press("enter")
    await pilot.pause()
    assert app.launches.current is not None


def test_a_launch_that_generates_asks_for_its_rewards(tmp_path: Path) -> None:
    rewards = tmp_path / "rewards.py"
    rewards.write_text("def length(completions, **more): ...\n")
    ended: list[dict[str, str] | None] = []

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        app.push_screen(LaunchForm("m", "prompts.jsonl", toy=True, rewarded=True), ended.append)
        await pilot.pause()
        for asked, says in (("", "name what rewards"), (f"{rewards}:width", "has no width; it has length")):
            app.screen.query_one("#field-reward", Input).value = asked
            app.screen.query_one("#field-data", Input).focus()
            await pilot.press("enter")
            await pilot.pause()
            assert says in words(app, "#wrong")
            assert app.focused is app.screen.query_one("#field-reward", Input)
        app.screen.query_one("#field-reward", Input).value = f"{rewards}:length think_format_reward"
        await pilot.press("enter")
        await pilot.pause()
        assert ended[0] is not None
        line = app.launches.words("train", ended[0])
        named = [value for name, value in pairwise(line) if name == "--reward"]
        assert named == [f"{rewards}:length", "think_format_reward"]

    tell(explorer(tmp_path / "tui.json"), story)


async def until(app: Explorer, pilot: Pilot[None], text: str) -> None:
    """Until the log says so."""
    for _ in range(400):
        await pilot.pause(0.03)
        if any(text in line for line in app.launches.current.log if app.launches.current is not None):  # type: ignore[union-attr]
            return
    raise AssertionError(words(app, "#log"))


def test_a_training_is_watched_stopped_and_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLD", "1")

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await pilot.press("7")
        await idle(app, pilot)
        assert "everything that it needs is here" in words(app, "#status")
        await begin(app, pilot)
        launch = app.launches.current
        assert launch is not None
        await until(app, pilot, "step 24/60")
        await pilot.pause(0.4)
        assert "24/60" in words(app, "#status")
        peaks = {line.split("  ")[-1]: line for line in words(app, "#peaks").splitlines()}
        assert any("7,481" in line and "7,478" in line and "-0.0 %" in line for line in peaks.values())
        assert launch.losses[-1] == 1.0006
        assert (tmp_path / "runs/Llama-3.1-8B/metrics.jsonl").read_text().count("\n") == 24
        await pilot.press("b")
        await pilot.pause()
        assert not isinstance(app.screen, LaunchForm)
        await pilot.press("q")
        await pilot.pause()
        assert isinstance(app.screen, ChoiceScreen)
        await pilot.press("escape", "x")
        for _ in range(200):
            await pilot.pause(0.03)
            if not launch.running:
                break
        await idle(app, pilot)
        assert launch.exit_code == 130
        assert "stopped" in words(app, "#status")
        assert "qlora-plan train runs/Llama-3.1-8B --resume" in words(app, "#status")

    with staged(tmp_path) as asked:
        tell(explorer(tmp_path / "tui.json", data=asked), story)


def test_leaving_stops_it_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLD", "1")

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await pilot.press("7")
        await idle(app, pilot)
        await begin(app, pilot)
        await until(app, pilot, "step 24/60")
        await pilot.press("q", "down", "enter")
        for _ in range(200):
            await pilot.pause(0.03)
            if app.tasks.ended:
                break
        assert app.tasks.ended
        assert app.launches.current is not None
        assert app.launches.current.exit_code == 130

    with staged(tmp_path) as asked:
        tell(explorer(tmp_path / "tui.json", data=asked), story)


def test_a_verification_gives_the_copied_command_and_its_answer(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await pilot.press("7", "c")
        await idle(app, pilot)
        copied = app.clipboard
        await pilot.press("escape", "v")
        await idle(app, pilot)
        assert app.launches.current is not None
        assert app.launches.current.line == copied
        assert app.launches.current.exit_code == 0
        assert "the answer" in words(app, "#log")

    with staged(tmp_path):
        tell(explorer(tmp_path / "tui.json"), story)


def test_a_verification_on_the_cpu_takes_a_toy_length_and_compares_what_can_be(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await pilot.press("7", "d")
        await idle(app, pilot)
        assert "toy length" in words(app, "#status")
        line = commands.line(app)
        assert "--seq-len 128 --grad-accum 2 --checkpoint-every 8 --device cpu" in line
        launch = app.launches.current = Launch(app.launches.words("verify"))
        launch.exit_code = 0
        for event in (
            {"event": "predicted", "estimate": {"phases": [{"name": "load", "device_bytes": 1 << 30}]}},
            {"event": "phase", "phase": "load"}, {"event": "begin", "step": 0, "of": 3},
            {"event": "step", "step": 1, "of": 3, "step_s": 0.5},
        ):  # fmt: skip
            launch._event(json.dumps(event))
        app.refresh_page()
        assert launch.predicted_bytes("load") is None  # the estimate is of a card
        assert (launch.step, launch.of) == (1, 3)
        assert "compared when it has ended" in words(app, "#peaks")
        known = {"name": "after loading", "predicted_bytes": 446 << 10, "measured_bytes": 422 << 10}
        unknown = {"name": "gradients", "predicted_bytes": None, "measured_bytes": 128 << 10}
        launch._event(json.dumps({"event": "compared", "static": [known], "components": [unknown]}))
        app.refresh_page()
        head, row = words(app, "#peaks").splitlines()
        assert head.split() == ["KiB", "compared", "predicted", "measured", "off"]
        assert row.split() == ["after", "loading", "446", "422", "-5.4", "%"]
        launch.end()

    tell(explorer(tmp_path / "tui.json"), story)


def test_what_was_trained_is_asked_beside_its_base(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await pilot.press("7", "a")
        await idle(app, pilot)
        assert app.launches.current is None, "there is nothing to ask yet"
        await begin(app, pilot)
        await idle(app, pilot)
        assert "a asks base and trained model" in words(app, "#status")
        await pilot.press("a")
        await idle(app, pilot)
        launch = app.launches.current
        assert launch is not None
        assert launch.argv[0] == "side-by-side"
        assert launch.exit_code == 0
        assert "the answer" in words(app, "#log")

    with staged(tmp_path) as asked:
        tell(explorer(tmp_path / "tui.json", data=asked), story)


def test_what_is_refused_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "1")

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await pilot.press("7")
        await idle(app, pilot)
        await begin(app, pilot)
        await idle(app, pilot)
        assert "there is no such file" in words(app, "#status")
        assert app.launches.current is not None
        assert app.launches.current.resume_line() is None

    with staged(tmp_path) as asked:
        tell(explorer(tmp_path / "tui.json", data=asked), story)


def test_without_a_card_it_says_what_is_missing_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Readiness(packages=(), card=None, no_card="NVML: no NVIDIA driver is installed here")
    monkeypatch.setattr(Readiness, "of", classmethod(lambda cls, run: nothing))

    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot)
        await pilot.press("7", "v", "b")
        await idle(app, pilot)
        assert app.launches.current is None
        assert "no NVIDIA driver" in words(app, "#status")
        await pilot.press("d")
        await pilot.pause()
        assert "everything that it needs is here" in words(app, "#status")
        assert "--device cpu" in commands.line(app)

    tell(explorer(tmp_path / "tui.json"), story)
    lacking = Readiness(packages=("torch",), card="RTX 4090", no_card="")
    assert "pip install" in (lacking.lacks("cpu") or "")
