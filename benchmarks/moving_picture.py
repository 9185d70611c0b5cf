"""A moving picture of the explorer: `python benchmarks/moving_picture.py docs/screenshots/turn.svg`.

A story of keys is played in the real app; after each chapter it takes its own picture, and the pictures become one SVG
that shows them in turn. Rows that stay the same over several pictures are written once. Nothing depends on the machine.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.tui.conftest import explorer
from tests.tui.scenes import quiet, staged

SIZE = (100, 30)
CARD = "12GB"
MODEL = "llama-3.1-8b"


@dataclass(frozen=True)
class Chapter:
    """Keys to press, what stands over the picture after them, and how long it is shown."""

    keys: tuple[str, ...]
    caption: str
    seconds: float


STORY = (
    Chapter(("ctrl+home",), f"qlora-plan tui --gpu {CARD}", 3.0),
    Chapter(("slash", *MODEL, "enter"), f"/ {MODEL}: look for a model", 2.0),
    Chapter(("enter",), "Enter: its run", 3.0),
    Chapter(("down", "right"), "right: a larger batch", 1.5),
    Chapter(("right",), "right: and larger", 3.5),
    Chapter(("f",), "f: the best that fits at this length", 4.0),
)


async def taken(story: tuple[Chapter, ...] = STORY) -> list[str]:
    """The app's own SVG after each chapter."""
    pictures = []
    with tempfile.TemporaryDirectory() as home, staged(Path(home)):
        app = explorer(Path(home) / "tui.json", CARD)
        async with app.run_test(size=SIZE) as pilot:
            await quiet(app, pilot)
            for chapter in story:
                await pilot.press(*chapter.keys)
                await quiet(app, pilot)
                pictures.append(app.export_screenshot(title=chapter.caption))
    return pictures


_RULE = re.compile(r"\.(terminal-\d+-r\d+) \{ ([^}]*?) ?\}")
_PIECE = re.compile(r'<rect [^>]*shape-rendering="crispEdges"/>|<text class="terminal-\d+-r\d+".*?</text>', re.DOTALL)
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
    first = re.sub(r"terminal-\d+-", "terminal-", first)
    first = re.sub(r"\.terminal-r\d+ \{[^}]*\}\n?", "", first).replace(
        "Fira Code, ", "Fira Code, ui-monospace, Menlo, "
    )
    rules = [f".{name} {{ {style} }}" for style, name in styles.items()]
    rules += [_shown(span, starts) for span in sorted(spans) if span != (0, len(pictures))]
    rules.append("@media (prefers-reduced-motion: reduce) { g { animation: none !important } }")
    first = first.replace("</style>", "\n".join(rules) + "\n</style>")
    return _MATRIX.sub(lambda found: f"{found[1]}\n{body}</g>", first)


def _rows(picture: str, styles: dict[str, str]) -> dict[str, str]:
    """The pieces of a picture by the row that they stand in, under class names that all pictures share."""
    names = {name: styles.setdefault(style, f"r{len(styles)}") for name, style in _RULE.findall(picture)}
    rows: dict[str, str] = {}
    for piece in _PIECE.findall(picture):
        clip = re.search(r"-line-(\d+)\)", piece)
        top = re.search(r' y="([\d.]+)"', piece)
        # A background begins 1.5 below the first of the rows, which are 24.4 apart; a text names its row.
        row = clip[1] if clip else str(round((float(top[1]) - 1.5) / 24.4)) if top else "0"
        piece = re.sub(r'class="(terminal-\d+-r\d+)"', lambda found: f'class="{names[found[1]]}"', piece)
        rows[row] = rows.get(row, "") + re.sub(r"terminal-\d+-", "terminal-", piece)
    return rows


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


def main(path: Path) -> int:
    """Write it."""
    picture = joined(asyncio.run(taken()), [chapter.seconds for chapter in STORY])
    path.write_text(picture, encoding="utf-8")
    print(f"{path}: {len(picture) // 1024} KiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/screenshots/turn.svg")))
