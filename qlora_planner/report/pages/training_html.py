"""report.html of a training run: one file with its figures and its plots, readable without a network.

The plots are a few lines of SVG: a plotting library would weigh more than all of this package for two line charts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import ceil, floor, isfinite, log10
from typing import Any

from qlora_planner.report.parts.theme import Theme
from qlora_planner.report.training import model_name, render_training
from qlora_planner.text import screen
from qlora_planner.units import GIB

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 240, 64, 28, 12
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.3rem}h2{font-size:1.05rem;margin:1.6rem 0 .3rem}pre{background:#f5f5f5;padding:1rem;overflow:auto}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;
border-bottom:1px solid #8884;white-space:pre-wrap;width:33%}
svg{width:100%;height:auto}text{font:11px system-ui,sans-serif;fill:#555}.grid{stroke:#ddd}.axis{stroke:#999}
@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}pre{background:#222}text{fill:#aaa}.grid{stroke:#333}}"""

Series = tuple[str, str, Sequence[tuple[float, float]]]  # name, colour, points


def render_html(
    summary: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    *,
    folder: str,
    answers: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The whole page of a summary.json and the rows of its metrics.jsonl, with answers of base and tuned model."""
    title = f"{escape(model_name(summary))}: {escape(summary['outcome'])}"
    text = escape(render_training(summary, Theme(unicode=True, width=100), folder=folder))
    parts = [f"<h1>{title}</h1>", f"<pre>{text}</pre>"]
    if answers:
        parts += ["<h2>Base and tuned, side by side</h2>", _answers_table(answers)]
    for heading, unit, series, level in _plots(summary, metrics):
        parts += [f"<h2>{escape(heading)}</h2>", chart(series, unit, level=level)]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _answers_table(answers: Sequence[Mapping[str, Any]]) -> str:
    rows = ["<tr><th>prompt</th><th>base</th><th>tuned</th></tr>"]
    for answer in answers:
        cells = (screen(str(answer[name])) for name in ("prompt", "base", "tuned"))
        rows.append(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _plots(
    summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str, list[Series], tuple[str, float] | None]]:
    steps = [row for row in metrics if row["kind"] == "step"]

    def points(rows: Sequence[Mapping[str, Any]], name: str, scale: float = 1.0) -> list[tuple[float, float]]:
        return [(row["step"], row[name] / scale) for row in rows if row.get(name) is not None]

    losses: list[Series] = [("training", "#1f77b4", points(steps, "loss"))]
    held_out = points([row for row in metrics if row["kind"] == "evaluation"], "eval_loss")
    if held_out:
        losses.append(("held out", "#d62728", held_out))
    yield "Loss by step", "", losses, None
    rewards: list[Series] = [
        ("mean reward", "#1f77b4", points(steps, "reward")), ("std", "#9467bd", points(steps, "reward_std")),
        ("chosen", "#2ca02c", points(steps, "chosen_reward")), ("margin", "#ff7f0e", points(steps, "reward_margin")),
        ("rejected", "#d62728", points(steps, "rejected_reward")),
    ]  # fmt: skip
    if any(series[2] for series in rewards):
        yield "Rewards by step", "", [series for series in rewards if series[2]], None
    if lengths := points(steps, "completion_len"):
        yield "Completions by step", "tokens", [("mean length", "#17becf", lengths)], None
    memory: list[Series] = [
        ("this process", "#2ca02c", points(steps, "process_bytes", GIB)),
        ("allocated at the peak", "#1f77b4", points(steps, "allocated_peak_bytes", GIB)),
        ("host memory", "#9467bd", points(steps, "host_peak_bytes", GIB)),
    ]
    predicted = summary["memory"]["predicted"]
    level = None if predicted is None else ("predicted peak", predicted["device_bytes"] / GIB)
    yield "Memory by step", "GiB", [series for series in memory if series[2]], level
    yield "Speed by step", "tokens/s", [("tokens/s", "#ff7f0e", points(steps, "tokens_per_s"))], None
    yield "Learning rate by step", "", [("learning rate", "#8c564b", points(steps, "learning_rate"))], None


def ticks(low: float, high: float, at_most: int = 6) -> list[float]:
    """Round figures for an axis that holds `low` to `high`: from nought, unless something is below it."""
    low = min(0.0, low)
    high = max(high, 0.0) if low < 0 else high
    span = high - low
    rough = (span if span > sys.float_info.min * 1e6 else 1.0) / (at_most - 2)
    power = 10.0 ** floor(log10(rough))
    step = next(times * power for times in (1, 2, 2.5, 5, 10) if times * power >= rough * (1 - 1e-9))
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, max(last, first + 1) + 1)]


def _figure(value: float) -> str:
    """A tick as one reads it: 20,000 and not 2e+04."""
    return f"{value:,.10g}" if abs(value) >= 0.001 or value == 0 else f"{value:.3g}"


def chart(series: Sequence[Series], unit: str, *, level: tuple[str, float] | None = None) -> str:
    """Lines over steps as SVG; `level` is a dashed line across. Nothing to draw is said in words."""
    series = [(name, colour, [point for point in points if isfinite(point[1])]) for name, colour, points in series]
    everything = [point for _, _, points in series for point in points]
    if not everything:
        return "<p>nothing was recorded</p>"
    xs, ys = [x for x, _ in everything], [y for _, y in everything] + ([level[1]] if level else [])
    marks = ticks(min(ys), max(ys))
    low, high, first, last = marks[0], marks[-1], min(xs), max(xs)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        return (
            _LEFT + across * (_WIDTH - _LEFT - 8),
            _HEIGHT - _BOTTOM - (y - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP),
        )

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">']
    for value in marks:
        _, y = place(first, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_figure(value)}</text>')
    for x, anchor in ((first, "start"), (last, "end")):
        parts.append(f'<text x="{place(x, low)[0]:.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">step {x:g}</text>')
    if level is not None:
        y = place(first, level[1])[1]
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d62728" stroke-dasharray="5 4"/>'
        )
        parts.append(f'<text x="{_WIDTH - 12}" y="{y - 4:.1f}" text-anchor="end">{escape(level[0])}</text>')
    for index, (name, colour, points) in enumerate(series):
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{drawn}"/>')
        if len(points) == 1:
            x, y = place(*points[0])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + 10 + 150 * index}" y="{_TOP + 8}" style="fill:{colour}">{escape(name)}</text>')
    if unit:
        parts.append(f'<text x="{_LEFT - 6}" y="10" text-anchor="end">{escape(unit)}</text>')
    return "\n".join([*parts, "</svg>"])
