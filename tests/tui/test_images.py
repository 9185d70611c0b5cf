"""Models that read images in the explorer: a knob for their size and their number, and what is not said of them."""

from __future__ import annotations

from pathlib import Path

from textual.pilot import Pilot

from qlora_planner.session import load_model
from qlora_planner.spec.run import RunConfig
from qlora_planner.tui.app import Explorer
from qlora_planner.tui.knobs import KNOBS, changed, knobs_of, turned
from qlora_planner.tui.widgets.common import KnobList
from tests.tui.conftest import explorer, idle, open_model, tell, words

BY_NAME = {knob.name: knob for knob in KNOBS}
MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"


def test_images_have_knobs_where_the_model_reads_some() -> None:
    text, shown = RunConfig(), RunConfig(image_size="640x480")
    assert not {"image_size", "images"} & {knob.name for knob in knobs_of(shown)}
    assert [knob.name for knob in knobs_of(text, reads_images=True)][-1] == "image_size"
    assert [knob.name for knob in knobs_of(shown, reads_images=True)][-2:] == ["image_size", "images"]


def test_another_size_is_other_tokens_and_none_is_no_image() -> None:
    profile = load_model(MODEL)
    run = RunConfig(image_size="1000x700", image_tokens=900, images=2)
    larger, smaller = (turned(BY_NAME["image_size"], profile, run, by) for by in (1, -1))
    assert larger is not None and smaller is not None
    assert (smaller.image_size, larger.image_size) == ("768x576", "1024x768")
    assert larger.images == 2 and larger.image_tokens is None
    assert not changed(run, {"image_size": None}).shows_images


def test_a_size_is_turned_and_nobody_says_what_no_trace_knows(tmp_path: Path) -> None:
    async def story(app: Explorer, pilot: Pilot[None]) -> None:
        await open_model(app, pilot, MODEL)
        knobs = app.screen.query_one(KnobList)
        knobs.at = next(index for index, knob in enumerate(knobs.knobs) if knob.name == "image_size")
        await pilot.press("right")
        await idle(app, pilot)
        assert (app.state.run.image_size, app.state.run.images) == ("224x224", None)
        assert app.state.estimate is not None
        assert app.state.estimate.run.images == 1 and app.state.estimate.run.image_tokens == 64
        assert app.state.estimate.verdict == "cannot-say"
        app.go("prices")
        await idle(app, pilot)
        assert "`qlora-plan plan` with these options records" in words(app, "#note")

    tell(explorer(tmp_path / "tui.json"), story)
