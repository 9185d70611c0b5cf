"""Every place with something worth seeing in it, for the snapshots and for the pictures of the documentation."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from textual.pilot import Pilot
from textual.widgets import Input

from qlora_planner.session.data import DataSource
from qlora_planner.tui.app import Explorer
from qlora_planner.tui.control.child_process import Launch
from qlora_planner.tui.control.readiness import Readiness
from tests.tui.conftest import idle, open_model, painted
from tests.tui.player import Recording

Scene = Callable[[Explorer, Pilot[None]], Awaitable[None]]
MODEL = "llama-3.1-8b"
CARD = "rtx-4090"
RECORDING = Path(__file__).parents[2] / "docs" / "screenshots" / "watch-events.jsonl"


def write_data(path: Path, rows: int = 1_200) -> Path:
    """Texts whose lengths are spread as those of chats are, the same everywhere."""
    drawn = random.Random(7)
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(rows):
            stream.write(json.dumps({"text": "x" * (4 * min(9_000, int(drawn.lognormvariate(5.9, 0.8)) + 8))}) + "\n")
    return path


@contextmanager
def staged(folder: Path) -> Iterator[DataSource]:
    """A folder with a dataset, and children that stand for verify and train. Nothing depends on the machine."""
    here, child, look, path = Path.cwd(), Launch.program, Readiness.of, os.environ.get("PYTHONPATH", "")
    write_data(folder / "train.jsonl")
    try:
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
        Launch.program = (sys.executable, str(Path(__file__).with_name("child.py")))
        Readiness.of = classmethod(  # type: ignore[method-assign, assignment]
            lambda cls, run: cls(packages=(), card="RTX 4090", no_card="")
        )
        Input.cursor_blink.__init__(False)  # type: ignore[misc]
        yield DataSource(path="train.jsonl", chars_per_token=4.0)
    finally:
        os.chdir(here)
        os.environ["PYTHONPATH"] = path
        Launch.program, Readiness.of = child, look  # type: ignore[method-assign]
        Input.cursor_blink.__init__(True)  # type: ignore[misc]


async def quiet(app: Explorer, pilot: Pilot[None]) -> None:
    """Nothing is worked on, and no word of before is over the screen."""
    await idle(app, pilot)
    app.clear_notifications()
    before, still = "", 0
    for _ in range(80):  # tables measure their columns, and panes scroll, when there is time
        await pilot.pause(0.05)
        now = painted(app)
        still = still + 1 if now == before else 0
        if still == 4:
            return
        before = now


async def fit(app: Explorer, pilot: Pilot[None]) -> None:
    """The first screen."""
    await quiet(app, pilot)


async def cards(app: Explorer, pilot: Pilot[None]) -> None:
    """A column per size of card."""
    await pilot.press("m")
    await quiet(app, pilot)


async def run(app: Explorer, pilot: Pilot[None]) -> None:
    """A run with the why of a line."""
    await open_model(app, pilot, MODEL)
    await pilot.press("right", "right", "tab", *["down"] * 6)
    await quiet(app, pilot)


async def frontier(app: Explorer, pilot: Pilot[None]) -> None:
    """The heat map."""
    await open_model(app, pilot, MODEL)
    await pilot.press("3")
    await quiet(app, pilot)


async def prices(app: Explorer, pilot: Pilot[None]) -> None:
    """The knobs' prices."""
    await open_model(app, pilot, MODEL)
    await pilot.press("4")
    await quiet(app, pilot)


async def compare(app: Explorer, pilot: Pilot[None]) -> None:
    """Four pinned runs on two cards."""
    await open_model(app, pilot, MODEL)
    await pilot.press("p", "right", "right", "p")
    app.controller.use_card("rtx-3090")
    await idle(app, pilot)
    await pilot.press("p", "u", "u", "p", "5")
    await quiet(app, pilot)


async def data(app: Explorer, pilot: Pilot[None]) -> None:
    """A dataset with the slider moved."""
    await open_model(app, pilot, MODEL)
    await pilot.press("6")
    await idle(app, pilot)
    await pilot.press(*["left"] * 8)
    await quiet(app, pilot)


async def train(app: Explorer, pilot: Pilot[None]) -> None:
    """Before anything runs. That a card is here is staged."""
    await open_model(app, pilot, MODEL)
    await pilot.press("7")
    await quiet(app, pilot)


async def watch(app: Explorer, pilot: Pilot[None]) -> None:
    """A real training that was recorded, at its step 30 of 40, played; it goes on until it is stopped."""
    recording = Recording(RECORDING)
    Launch.program = (sys.executable, str(Path(__file__).with_name("player.py")), str(RECORDING))
    app.controller.use_card("h200")
    await idle(app, pilot)
    await open_model(app, pilot, MODEL)
    await pilot.press("7")
    await idle(app, pilot)
    app.launches.start(Launch(recording.words))
    assert app.launches.current is not None
    for _ in range(400):
        await pilot.pause(0.05)
        if app.launches.current.log and app.launches.current.step == 30:
            break
    await pilot.pause(0.5)
    app.tasks.ended = True  # nobody listens any more: a picture waits until every worker has ended
    await app.workers.wait_for_complete()
    await quiet(app, pilot)


async def export(app: Explorer, pilot: Pilot[None]) -> None:
    """The export dialog."""
    await open_model(app, pilot, MODEL)
    await pilot.press("e", "down")
    await quiet(app, pilot)


async def help_(app: Explorer, pilot: Pilot[None]) -> None:
    """The help of the knobs."""
    await open_model(app, pilot, MODEL)
    await pilot.press("question_mark")
    await quiet(app, pilot)


PLACES: dict[str, Scene] = {
    "fit": fit, "cards": cards, "run": run, "frontier": frontier, "prices": prices, "compare": compare, "data": data,
    "train": train, "watch": watch,
}  # fmt: skip
DIALOGS: dict[str, Scene] = {"export": export, "help": help_}


def title_of(scene: Scene) -> str:
    """What stands over a picture: where its measured figures are from, and what is made up."""
    if scene is watch:
        return Recording(RECORDING).title
    made_up = {train: "card", data: "dataset"}.get(scene)  # type: ignore[arg-type]
    return f"qlora-plan tui (staged: the {made_up} is made up)" if made_up else "qlora-plan tui"
