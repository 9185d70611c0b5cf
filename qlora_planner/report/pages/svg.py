"""Small SVG charts for reports: bars against a line, a stack, a curve. No script, no fonts, nothing fetched.

Colours are CSS variables that `STYLE` sets for light and dark, so a chart is readable in both where it stands in a page
that has the style; titles of marks are what a pointer shows and a screen reader reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape
from math import log2

from qlora_planner.record import record

WIDTH = 720
_LEFT, _RIGHT, _ROW, _BAR = 110, 90, 34, 22
COLORS = 6  # classes c0 to c5

STYLE = """
:root { --ink: #1f2328; --dim: #59636e; --paper: #ffffff; --rule: #d1d9e0; --edge: #cf222e;
  --c0: #0969da; --c1: #1b7c83; --c2: #bf8700; --c3: #8250df; --c4: #6e7781; --c5: #2da44e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9198a1; --paper: #0d1117; --rule: #3d444d;
  --edge: #ff7b72; --c0: #4493f8; --c1: #39c5cf; --c2: #d29922; --c3: #ab7df8; --c4: #8b949e; --c5: #3fb950; } }
svg { max-width: 100%; height: auto; display: block; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .dim { fill: var(--dim); } svg .rule { stroke: var(--rule); } svg .edge { stroke: var(--edge); stroke-width: 2; }
svg .edge-text { fill: var(--edge); } svg .curve { fill: none; stroke: var(--c0); stroke-width: 2; }
.c0 { fill: var(--c0); } .c1 { fill: var(--c1); } .c2 { fill: var(--c2); } .c3 { fill: var(--c3); }
.c4 { fill: var(--c4); } .c5 { fill: var(--c5); }
""".strip()


def scoped_style(scope: str) -> str:
    """`STYLE` for what stands inside of `scope`, a CSS selector, alone."""
    return re.sub(r"(?<![\w.-])(svg\b|\.c\d)", rf"{scope} \1", STYLE.replace(":root", scope))


@record
class Part:
    """A length of a bar: where it starts and how far it goes, in the chart's unit; `color` is one of `COLORS`."""

    label: str
    start: float
    length: float
    color: int


def bars(
    title: str,
    rows: Sequence[tuple[str, Sequence[Part], str]],
    *,
    edge: float | None = None,
    edge_label: str = "",
    legend: Sequence[tuple[str, int]] = (),
) -> str:
    """Horizontal bars: each row a name, its parts and a figure at its end; `edge` is a line across all of them."""
    ends = [part.start + part.length for _, parts, _ in rows for part in parts]
    scale = max([*ends, edge or 0.0, 1e-9])
    room = WIDTH - _LEFT - _RIGHT

    def x(value: float) -> float:
        return _LEFT + room * value / scale

    top = 28 if legend else 8
    height = top + _ROW * len(rows) + (24 if edge is not None else 6)
    body = _legend(legend)
    for at, (name, parts, figure) in enumerate(rows):
        y = top + at * _ROW
        body.append(_text(_LEFT - 8, y + 16, name, "dim", "end"))
        for part in parts:
            body.append(
                f'<rect class="c{part.color % COLORS}" x="{x(part.start):.1f}" y="{y}"'
                f' width="{max(0.0, x(part.start + part.length) - x(part.start)):.1f}" height="{_BAR}">'
                f"<title>{escape(part.label)}</title></rect>"
            )
        last = max((part.start + part.length for part in parts), default=0.0)
        body.append(_text(x(last) + 6, y + 16, figure, ""))
    if edge is not None:
        at_x, bottom = x(edge), height - 20
        body.append(f'<line class="edge" x1="{at_x:.1f}" y1="{top - 4}" x2="{at_x:.1f}" y2="{bottom}"/>')
        body.append(_text(min(at_x, WIDTH - 4), height - 6, edge_label, "edge-text", "end"))
    return _svg(title, height, body)


def curve(
    title: str,
    points: Sequence[tuple[float, float]],
    *,
    x_label: str,
    y_label: str,
    log: bool = False,
    form: Callable[[float], str] = "{:,.0f}".format,
) -> str:
    """A line through (x, y) points with a mark at each; `log` spaces both axes by doublings, for positive figures."""
    height, top, bottom = 280, 30, 40

    def at(value: float) -> float:
        return log2(value) if log else value

    def placed(values: Sequence[float], first: float, last: float, floor: float | None) -> Callable[[float], float]:
        low = min(at(value) for value in values) if floor is None else floor
        high = max(at(value) for value in values)
        span = high - low or 1.0
        return lambda value: first + (last - first) * (at(value) - low) / span

    if not points:
        return ""
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    x = placed(xs, _LEFT, WIDTH - _RIGHT, None)
    y = placed(ys, height - bottom, top, None if log else min(0.0, *ys))
    body = [
        f'<line class="rule" x1="{_LEFT}" y1="{height - bottom}" x2="{WIDTH - _RIGHT}" y2="{height - bottom}"/>',
        f'<line class="rule" x1="{_LEFT}" y1="{top}" x2="{_LEFT}" y2="{height - bottom}"/>',
        _text((_LEFT + WIDTH - _RIGHT) / 2, height - 6, x_label, "dim", "middle"),
        _text(8, 16, y_label, "dim"),
    ]
    line = " ".join(f"{x(across):.1f},{y(up):.1f}" for across, up in points)
    body.append(f'<polyline class="curve" points="{line}"/>')
    named = len(points) <= 24  # beyond that, figures would lie over each other
    for across, up in points if named else ():
        body.append(
            f'<circle class="c0" cx="{x(across):.1f}" cy="{y(up):.1f}" r="4">'
            f"<title>{escape(f'{form(across)}: {form(up)}')}</title></circle>"
        )
        body.append(_text(x(across) + 7, y(up) - 7, form(up), ""))
        body.append(_text(x(across), height - bottom + 16, form(across), "dim", "middle"))
    if not named:
        for value in (min(ys), max(ys)):
            body.append(_text(_LEFT - 6, y(value) + 4, form(value), "dim", "end"))
        for value in (min(xs), max(xs)):
            body.append(_text(x(value), height - bottom + 16, form(value), "dim", "middle"))
    return _svg(title, height, body)


def _legend(entries: Sequence[tuple[str, int]]) -> list[str]:
    marks, x = [], float(_LEFT)
    for label, color in entries:
        marks.append(f'<rect class="c{color % COLORS}" x="{x:.0f}" y="4" width="12" height="12"/>')
        marks.append(_text(x + 17, 14, label, "dim"))
        x += 32 + 6.5 * len(label)
    return marks


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, height: int, body: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(body)}</svg>'
    )
