"""How every place looks, at the smallest and at a usual size; `--snapshot-update` accepts another look.

A snapshot holds figures of the catalogue: a change of those changes it too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.tui.conftest import explorer
from tests.tui.scenes import CARD, DIALOGS, PLACES, Scene, fit, run, staged, title_of

Compare = Callable[..., bool]
SMALL, USUAL = (80, 24), (120, 40)


def looks_alike(
    compare: Compare, home: Path, scene: Scene, size: tuple[int, int], *, theme: str = "textual-dark", **more: Any
) -> bool:
    with staged(home) as asked:
        app = explorer(home / "tui.json", CARD, data=asked if scene is PLACES["data"] else None, **more)
        app.theme, app.title = theme, title_of(scene)

        async def reach(pilot: Pilot[None]) -> None:
            await scene(app, pilot)

        try:
            return compare(app, terminal_size=size, run_before=reach)
        finally:
            if app.launches.current is not None:
                app.launches.current.end(5)


@pytest.mark.parametrize("size", [SMALL, USUAL], ids=["80x24", "120x40"])
@pytest.mark.parametrize("name", PLACES)
def test_place(snap_compare: Compare, tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    assert looks_alike(snap_compare, tmp_path, PLACES[name], size)


@pytest.mark.parametrize("name", DIALOGS)
def test_dialog(snap_compare: Compare, tmp_path: Path, name: str) -> None:
    assert looks_alike(snap_compare, tmp_path, DIALOGS[name], SMALL)


@pytest.mark.parametrize("theme", ["textual-light", "high-contrast"])
def test_theme(snap_compare: Compare, tmp_path: Path, theme: str) -> None:
    assert looks_alike(snap_compare, tmp_path, run, SMALL, theme=theme)


def test_ascii(snap_compare: Compare, tmp_path: Path) -> None:
    assert looks_alike(snap_compare, tmp_path, run, SMALL, plain=True)


def test_too_small(snap_compare: Compare, tmp_path: Path) -> None:
    assert looks_alike(snap_compare, tmp_path, fit, (60, 20))
