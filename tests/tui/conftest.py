"""The explorer without a terminal, and its stories."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click.testing
import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from qlora_planner.cli.main import cli
from qlora_planner.cli.tui_survey import documents
from qlora_planner.session.data import DataSource
from qlora_planner.tui.app import Explorer
from qlora_planner.tui.core import card_of
from qlora_planner.tui.saved_state import read_state
from qlora_planner.tui.startup import Start
from qlora_planner.tui.widgets.common import Breakdown
from qlora_planner.tui.widgets.rows import ModelRow

Story = Callable[["Explorer", Pilot[None]], Awaitable[None]]

# What stands in a row for each verdict.
SIGNS = {"fits": "✓", "tight": "≈", "cannot-say": "?", "does-not-fit": "✗", "will-not-run": "⊘"}


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees, or writes, what the user has."""
    home = tmp_path_factory.mktemp("home")
    for variable in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(home / variable))
    for variable in ("NO_COLOR", "QLORA_PLANNER_PROFILES", "COLUMNS", "LINES"):
        monkeypatch.delenv(variable, raising=False)
    yield


@cache
def document(*args: str) -> dict[str, Any]:
    """What the command line answers with --json."""
    result = click.testing.CliRunner().invoke(cli, [*args, "--json"], prog_name="qlora-plan")
    assert result.exit_code in (0, 1, 5), result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@cache
def surveyed(card: str, recommend: bool = True) -> list[ModelRow]:
    """The rows of a card, surveyed once for all stories."""
    return [ModelRow.of(row) for row in documents(card_of(card), None, recommend)]


def explorer(
    state: Path, gpu: str | None = "24GB", *, data: DataSource | None = None, plain: bool = False,
    model: str | None = None, **start: Any,
) -> Explorer:  # fmt: skip
    """The app as the verb makes it, with a state file of its own, on a machine without a card."""
    known, note = read_state(state)
    card = card_of(gpu or known.card)
    return Explorer(
        Start(
            survey=lambda card, recommend: surveyed(card.asked, recommend), card=card, saved=known, note=note,
            state_path=state, data=data, plain=plain, model=model, **{"cards_here": tuple, **start},
        )
    )  # fmt: skip


async def idle(app: Explorer, pilot: Pilot[None]) -> None:
    """Wait until no worker has anything to do."""
    for _ in range(600):
        await pilot.pause()
        if app.tasks.idle:
            await pilot.pause()
            if app.tasks.idle:
                return
        await asyncio.sleep(0.02)
    raise AssertionError(f"still working: {app.tasks.busy}")


def tell(app: Explorer, story: Story, size: tuple[int, int] = (120, 40)) -> None:
    """Run a story to its end."""

    async def play() -> None:
        async with app.run_test(size=size) as pilot:
            await idle(app, pilot)
            await story(app, pilot)

    asyncio.run(play())


async def open_model(app: Explorer, pilot: Pilot[None], name: str = "llama-3.1-8b") -> None:
    """Filter for a model and open it, as people do."""
    await pilot.press("slash", *name, "enter", "enter")
    await idle(app, pilot)
    assert app.current_mode == "run"


def table(app: Explorer, selector: str) -> list[list[str]]:
    """The cells of a table as text."""
    found = app.screen.query_one(selector, DataTable)
    return [[str(cell).strip() for cell in found.get_row_at(index)] for index in range(found.row_count)]


def breakdown(app: Explorer) -> list[str]:
    """The MiB of every line of the breakdown."""
    lines = str(app.screen.query_one(Breakdown).render()).splitlines()
    return [line[25:34].strip() for line in lines]


def words(app: Explorer, selector: str) -> str:
    """What a pane says."""
    return str(app.screen.query_one(selector, Static).content)


def painted(app: Explorer) -> str:
    """The screen as text."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)
