"""A report as blocks, written as Markdown or as one HTML page that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from qlora_planner.report.pages.svg import STYLE, scoped_style

_PAGE = """
body { color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 52rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { border-bottom: 1px solid var(--rule); padding: 0.25rem 0.5rem; text-align: left; vertical-align: top; }
th { color: var(--dim); font-weight: 600; } td.number, th.number { text-align: right; white-space: nowrap; }
pre { border: 1px solid var(--rule); padding: 0.6rem; overflow-x: auto; font-size: 0.85rem; }
figure { margin: 1rem 0; } figcaption { color: var(--dim); font-size: 0.85rem; }
""".strip()
_SCOPE = "qlora-plan"
# A notebook's own theme says nothing of the reader's system, so what follows that has its own paper.
_PIECE = f".{_SCOPE} {{ color: var(--ink); background: var(--paper); padding: 0.5rem 1rem; }}"
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#])")


@dataclass(frozen=True, slots=True)
class Heading:
    """A section begins."""

    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """Text to copy as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under heads; `numbers` are the columns that end at their right edge."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Plot:
    """A chart, its caption, and the same as text for where no chart is shown."""

    svg: str
    caption: str
    text: str


Block = Heading | Paragraph | Code | Table | Plot


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """Markdown; charts as text, since most places that show Markdown drop drawings."""
    return "\n\n".join([f"# {_plain(title)}", *(_markdown(block) for block in blocks)]) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {_plain(block.text)}"
    if isinstance(block, Paragraph):
        return _plain(block.text)
    if isinstance(block, Code):
        return _fenced(block.text)
    if isinstance(block, Plot):
        return f"{_plain(block.caption)}\n\n{_fenced(block.text)}"
    rule = ["---:" if at in block.numbers else "---" for at in range(len(block.heads))]
    rows = [[_plain(cell) for cell in row] for row in (block.heads, *block.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def _plain(text: str) -> str:
    """Text that Markdown takes as it is, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """A whole page, light or dark as the reader's system is."""
    body = "\n".join(part for block in blocks for part in _html(block))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n{_PAGE}\n</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def to_fragment(title: str, blocks: Sequence[Block]) -> str:
    """A piece to stand in somebody else's page, as a notebook is: its style reaches nothing outside it."""
    body = "\n".join(part for block in blocks for part in _html(block))
    style = f"{scoped_style('.' + _SCOPE)}\n{_PIECE}"
    return f'<div class="{_SCOPE}">\n<style>\n{style}\n</style>\n<h3>{escape(title)}</h3>\n{body}\n</div>'


def _html(block: Block) -> Iterator[str]:
    if isinstance(block, Heading):
        yield f"<h2>{escape(block.text)}</h2>"
    elif isinstance(block, Paragraph):
        yield f"<p>{escape(block.text)}</p>"
    elif isinstance(block, Code):
        yield f"<pre><code>{escape(block.text)}</code></pre>"
    elif isinstance(block, Plot):
        yield f"<figure>{block.svg}<figcaption>{escape(block.caption)}</figcaption></figure>"
    else:
        yield "<table>"
        yield f"<thead><tr>{_cells('th', block.heads, block.numbers)}</tr></thead>"
        yield "<tbody>"
        for row in block.rows:
            yield f"<tr>{_cells('td', row, block.numbers)}</tr>"
        yield "</tbody>"
        yield "</table>"


def _cells(tag: str, row: Sequence[str], numbers: frozenset[int]) -> str:
    number = ' class="number"'
    return "".join(f"<{tag}{number if at in numbers else ''}>{escape(cell)}</{tag}>" for at, cell in enumerate(row))
