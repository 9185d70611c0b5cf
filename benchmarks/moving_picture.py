"""Moving pictures of the explorer: `python benchmarks/moving_picture.py docs/screenshots`.

Stories of keys are played in the real app; after each chapter it takes its own picture, and the pictures of a story
become one SVG that shows them in turn. Rows that stay the same over several pictures are written once. Nothing depends
on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from textual.pilot import Pilot

from qlora_planner.tui.app import Explorer
from tests.tui import scenes
from tests.tui.conftest import explorer
from tests.tui.scenes import Scene, quiet, staged, title_of

TURN_CARD = "12GB"
TURN_MODEL = "llama-3.1-8b"


@dataclass(frozen=True)
class Chapter:
    """Keys to press, or a scene to go to; what stands over the picture after them, and how long it is shown."""

    caption: str
    seconds: float
    keys: tuple[str, ...] = ()
    scene: Scene | None = None


@dataclass(frozen=True)
class Story:
    """Chapters on a card, in a terminal of some size."""

    chapters: tuple[Chapter, ...]
    card: str = scenes.CARD
    size: tuple[int, int] = (100, 34)
    with_data: bool = False


def _of(scene: Scene, *chapters: Chapter, with_data: bool = False) -> Story:
    """The story of a place: its scene, then chapters there. What is made up is named in every caption."""
    title = title_of(scene)
    told = [replace(chapter, caption=title.replace("qlora-plan tui", chapter.caption)) for chapter in chapters]
    return Story((Chapter(title, 4.0, scene=scene), *told), with_data=with_data)


async def _trained(app: Explorer, pilot: Pilot[None]) -> None:
    """A recorded training, once nothing of the scene before stands in the filter."""
    await pilot.press("1", "escape")
    await scenes.watch(app, pilot)


STORIES = {
    "turn": Story(
        (
            Chapter(f"qlora-plan tui --gpu {TURN_CARD}", 3.0, ("ctrl+home",)),
            Chapter(f"/ {TURN_MODEL}: look for a model", 2.0, ("slash", *TURN_MODEL, "enter")),
            Chapter("Enter: its run", 3.0, ("enter",)),
            Chapter("right: a larger batch", 1.5, ("down", "right")),
            Chapter("right: and larger", 3.5, ("right",)),
            Chapter("f: the best that fits at this length", 4.0, ("f",)),
        ),
        card=TURN_CARD, size=(100, 30),
    ),
    "fit": _of(
        scenes.fit,
        Chapter("/ qwen3: words of a name", 3.0, ("slash", *"qwen3", "enter")),
        Chapter("s: another order, by size", 3.0, ("s",)),
        Chapter("m: a column for each size of card", 4.0, ("m",)),
    ),
    "run": _of(
        scenes.run,
        Chapter("f: the best that fits at this length", 4.0, ("f",)),
        Chapter("u: back to the run before", 2.0, ("u",)),
    ),
    "frontier": _of(
        scenes.frontier,
        Chapter("down: a batch of 2 would not fit", 4.0, ("down",)),
        Chapter("left: with 1,024 tokens it does", 3.0, ("left",)),
        Chapter("Enter: takes it", 3.0, ("enter",)),
    ),
    "prices": _of(
        scenes.prices,
        Chapter("down: sequences of 1,024 tokens", 4.0, ("down", "down")),
        Chapter("Enter: takes it", 3.0, ("enter",)),
    ),
    "compare": _of(scenes.compare, Chapter("x: forgets the run under the cursor", 3.0, ("down", "x"))),
    "data": _of(
        scenes.data,
        Chapter("left: cut shorter", 4.0, ("left",) * 6),
        Chapter("a: the run takes that length", 3.0, ("a",)),
        with_data=True,
    ),
    "train": _of(scenes.train, Chapter("", 5.0, scene=_trained)),
}  # fmt: skip


async def taken(story: Story) -> list[str]:
    """The app's own SVG after each chapter."""
    pictures = []
    with tempfile.TemporaryDirectory() as home, staged(Path(home)) as data:
        app = explorer(Path(home) / "tui.json", story.card, data=data if story.with_data else None)
        async with app.run_test(size=story.size) as pilot:
            await quiet(app, pilot)
            for chapter in story.chapters:
                if chapter.scene is not None:
                    await chapter.scene(app, pilot)
                await pilot.press(*chapter.keys)
                await quiet(app, pilot)
                title = chapter.caption if chapter.scene is not _trained else title_of(scenes.watch)
                pictures.append(app.export_screenshot(title=title))
        if app.launches.current is not None:
            app.launches.current.end(5)
    return pictures


_RULE = re.compile(r"\.(terminal-\d+-r\d+) \{ ([^}]*?) ?\}")
_PIECE = re.compile(r'<rect [^>]*shape-rendering="crispEdges"/>|<text class="terminal-\d+-r\d+".*?</text>', re.DOTALL)
_RECT = re.compile(r'<rect fill="([^"]*)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="24.65" [^>]*/>')
_CLIP = re.compile(r'<clipPath id="terminal-line-\d+">.*?</clipPath>\n?', re.DOTALL)
_TITLE = re.compile(r'<text class="terminal-\d+-title".*?</text>', re.DOTALL)
_FONT = re.compile(r"@font-face \{.*?\}\n", re.DOTALL)
_MATRIX = re.compile(r'(<g transform="[^"]*" clip-path="[^"]*">).*</g>', re.DOTALL)


def joined(pictures: list[str], seconds: list[float]) -> str:
    """One SVG that shows `pictures` in turn, for ever; the last of them to whoever asked for less motion."""
    styles: dict[str, str] = {}
    spans: dict[tuple[int, int], list[str]] = {}
    titles = ""
    rows_before: dict[str, tuple[str, int]] = {}  # place -> what stands there, and since which picture
    for index, picture in enumerate(pictures):
        rows = _rows(picture, styles)
        spans.setdefault((index, index + 1), [])
        titles += f'<g class="s{index}-{index + 1}">{"".join(_TITLE.findall(picture))}</g>\n'
        for place in {*rows, *rows_before}:
            now = rows.get(place, "")
            before, since = rows_before.get(place, ("", index))
            if now != before:
                if before:
                    spans.setdefault((since, index), []).append(before)
                rows_before[place] = (now, index)
    for text, since in rows_before.values():
        spans.setdefault((since, len(pictures)), []).append(text)
    starts = [0.0, *accumulate(seconds)]
    body = "".join(f'<g class="s{a}-{b}">{"".join(rows)}</g>\n' for (a, b), rows in sorted(spans.items()))
    first = _FONT.sub("", _TITLE.sub(lambda _: titles, pictures[0]))
    first = _CLIP.sub("", re.sub(r"terminal-\d+-", "terminal-", first))
    first = re.sub(r"\.terminal-r\d+ \{[^}]*\}\n?", "", first).replace(
        "Fira Code, ", "Fira Code, ui-monospace, Menlo, "
    )
    rules = [f".{name} {{ {style} }}" for style, name in styles.items()]
    rules += [_shown(span, starts) for span in sorted(spans) if span != (0, len(pictures))]
    rules.append("rect { shape-rendering: crispEdges }")
    rules.append("@media (prefers-reduced-motion: reduce) { g { animation: none !important } }")
    first = first.replace("</style>", "\n".join(rules) + "\n</style>")
    return _MATRIX.sub(lambda found: f"{found[1]}\n{body}</g>", first)


def _rows(picture: str, styles: dict[str, str]) -> dict[str, str]:
    """The pieces of a picture by the row that they stand in, under class names that all pictures share."""
    names = {name: styles.setdefault(style, f"r{len(styles)}") for name, style in _RULE.findall(picture)}
    rows: dict[str, str] = {}
    for piece in _merged(_PIECE.findall(picture)):
        clip = re.search(r"-line-(\d+)\)", piece)
        top = re.search(r' y="([\d.]+)"', piece)
        # A background begins 1.5 below the first of the rows, which are 24.4 apart; a text names its row.
        row = clip[1] if clip else str(round((float(top[1]) - 1.5) / 24.4)) if top else "0"
        piece = re.sub(r'class="(terminal-\d+-r\d+)"', lambda found: f'class="{names[found[1]]}"', piece)
        rows[row] = rows.get(row, "") + re.sub(r' clip-path="[^"]*"', "", piece)
    return rows


def _merged(pieces: list[str]) -> list[str]:
    """Backgrounds side by side in one colour as one, which textual writes cell by cell."""
    merged: list[str] = []
    before: tuple[str, float, str, float] | None = None  # colour, where it began, row, where it ends
    for piece in pieces:
        now = _RECT.fullmatch(piece)
        if now is None:
            merged.append(piece)
            before = None
            continue
        fill, x, y, width = now[1], float(now[2]), now[3], float(now[4])
        if before is not None and (before[0], before[2]) == (fill, y) and abs(before[3] - x) < 0.05:
            x, width = before[1], x + width - before[1]
            merged.pop()
        merged.append(f'<rect fill="{fill}" x="{x:g}" y="{y}" width="{width:.5g}" height="24.65"/>')
        before = fill, x, y, x + width
    return merged


def _shown(span: tuple[int, int], starts: list[float]) -> str:
    """The style of what is seen from one picture to another."""
    a, b = span
    share = [100 * moment / starts[-1] for moment in (starts[a], starts[b])]
    hidden, seen = "visibility: hidden", "visibility: visible"
    steps = [f"0% {{ {seen if a == 0 else hidden} }}"]
    if a:
        steps.append(f"{share[0]:.2f}% {{ {seen} }}")
    if b < len(starts) - 1:
        steps.append(f"{share[1]:.2f}%, 100% {{ {hidden} }}")
    else:
        steps.append(f"100% {{ {seen} }}")
    rest = seen if b == len(starts) - 1 else hidden
    return (
        f".s{a}-{b} {{ {rest}; animation: k{a}-{b} {starts[-1]:g}s steps(1, end) infinite }}\n"
        f"@keyframes k{a}-{b} {{ {' '.join(steps)} }}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=[*STORIES], nargs="*")
    asked = parser.parse_args(arguments)
    for name in asked.only or STORIES:
        story = STORIES[name]
        picture = joined(asyncio.run(taken(story)), [chapter.seconds for chapter in story.chapters])
        path = asked.folder / f"{name}.svg"
        path.write_text(picture, encoding="utf-8")
        print(f"{path}: {len(picture) // 1024} KiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
