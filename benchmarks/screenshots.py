"""Pictures of what does not move in the explorer, from itself: `python benchmarks/screenshots.py docs/screenshots`.

The scenes are those of the snapshots in tests/tui; nothing in a picture depends on the machine or the time. The
training that is watched is a recording of a real one (docs/screenshots/watch-events.jsonl), and the title says on which
card; what is made up for a picture is called staged there.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.moving_picture import STORIES
from tests.tui.conftest import explorer
from tests.tui.scenes import CARD, DIALOGS, PLACES, Scene, staged, title_of

SIZE = (110, 34)


async def picture(scene: Scene, home: Path, *, counted: bool) -> str:
    """The SVG of one scene."""
    with staged(home) as data:
        app = explorer(home / "tui.json", CARD, data=data if counted else None)
        async with app.run_test(size=SIZE) as pilot:
            await scene(app, pilot)
            found = app.export_screenshot(title=title_of(scene))
        if app.launches.current is not None:
            app.launches.current.end(5)
    return re.sub(r"\bterminal-\d+-", "terminal-", found)


def main(arguments: Iterable[str] | None = None) -> int:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=[*PLACES, *DIALOGS], nargs="*")
    asked = parser.parse_args(None if arguments is None else list(arguments))
    asked.folder.mkdir(parents=True, exist_ok=True)
    for name, scene in {**PLACES, **DIALOGS}.items():
        if name in {*STORIES, "watch"} or (asked.only and name not in asked.only):  # those move; Train's watches
            continue
        with tempfile.TemporaryDirectory() as home:
            svg = asyncio.run(picture(scene, Path(home), counted=False))
        path = asked.folder / f"{name}.svg"
        path.write_text(svg, encoding="utf-8")
        print(f"{path}: {len(svg) // 1024} KiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
