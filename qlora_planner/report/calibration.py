"""What was learnt from measurements, as a screen: contexts, residuals, and how residuals judge each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from math import exp
from typing import Any

from qlora_planner.evidence.calibration import FIGURES, METHODS, Calibration
from qlora_planner.evidence.residuals import FEWEST
from qlora_planner.report.parts.theme import Line, Theme, columns
from qlora_planner.units import format_mib

_WORDS = {
    "traced": "traced runs",
    "proved-form": "closed forms, where proved",
    "other-form": "closed forms, elsewhere",
}


def render_calibration(found: Calibration, used: int, everything: int, path: str, theme: Theme) -> str:
    """The whole screen; `used` of `everything` measured runs could be compared."""
    mark = theme.sign("✓", "+")
    text = f"{used} of {everything} verifications (repeats, limits and failures say nothing here)"
    lines = [*theme.wrap(text, first=f"{mark} calibrated from ", first_style="bold green"), []]
    lines += _contexts(found, theme)
    lines += [[], *_residuals(found, theme), []]
    if found.speed:
        lines += [*_speed(found, theme), []]
    lines += theme.wrap(f"kept in {path}; estimates use it from now on", style="dim")
    return theme.render(lines)


def to_document(found: Calibration) -> dict[str, Any]:
    """The calibration with its leave-one-out figures, JSON-ready."""
    held = {
        method: {figure: asdict(one) for figure in FIGURES if (one := found.held_out(method, figure)) is not None}
        for method in found.residuals
    }
    return {"calibration": found.to_dict(), "held_out": held}


def _contexts(found: Calibration, theme: Theme) -> Iterator[Line]:
    if not found.contexts:
        yield from theme.wrap("no context learnt: the driver gave no figure for the process", style="yellow")
        return
    widths, left = (20, 12, 13, 17, 4), frozenset({0})
    heads = ("context, by card", "first tensor", "end of a step", "from - to", "runs")
    yield columns([(head, "dim") for head in heads], widths, left)
    for card, one in found.contexts.items():
        low, high = (format_mib(size).removesuffix(" MiB") for size in (one.low_bytes, one.high_bytes))
        cells = (
            theme.cut(card, 20), format_mib(one.first_tensor_bytes),
            format_mib(one.first_tensor_bytes + one.kernels_bytes), f"{low} - {high} MiB", str(one.count),
        )  # fmt: skip
        yield columns([(cell, "") for cell in cells], widths, left)


def _speed(found: Calibration, theme: Theme) -> Iterator[Line]:
    widths, left = (20, 9, 10, 10, 13, 4, 10), frozenset({0})
    heads = ("speed, by card", "products", "attention", "bandwidth", "launch, us", "runs", "left out")
    yield columns([(head, "dim") for head in heads], widths, left)
    for card, one in found.speed.items():
        parts = (one.product_fraction, one.attention_fraction, one.bandwidth_fraction)
        cells = (
            theme.cut(card, 20), *(f"{100 * part:.0f} %" for part in parts),
            f"{1e6 * one.launch_s:.0f} and {1e6 * one.engine_launch_s:.0f}", str(one.count),
            "-" if one.mean_abs_log is None else f"{100 * (exp(one.mean_abs_log) - 1):.0f} %",
        )  # fmt: skip
        yield columns([(cell, "") for cell in cells], widths, left)
    text = (
        "parts of the data sheet's rates, and the time of a kernel's launch forwards and backwards, from runs that had"
        " the card for themselves; left out: how far off each run is by what the others teach"
    )
    yield from theme.wrap(text, style="dim")


def _residuals(found: Calibration, theme: Theme) -> Iterator[Line]:
    widths, left = (26, 9, 4, 9, 7, 13), frozenset({0, 1})
    heads = ("measured over predicted", "figure", "runs", "mean abs.", "worst", "90 % width")
    yield columns([(head, "dim") for head in heads], widths, left)
    for method in METHODS:
        for figure in FIGURES:
            one = found.held_out(method, figure)
            if one is None:
                continue
            if one.inside is None or one.median_width is None:
                judged = "too few"
            else:
                judged = f"{100 * one.median_width:.1f} %, {one.inside}/{one.count}"
            cells = (
                _WORDS[method], figure, str(one.count), f"{100 * one.mean_abs:.2f} %", f"{100 * one.worst:+.1f} %",
                judged,
            )  # fmt: skip
            yield columns([(cell, "") for cell in cells], widths, left)
    text = (
        "90 % width: of the interval that the other runs give each, and how many lie in theirs (leave one out). With"
        f" fewer than {FEWEST + 1} runs, the shipped residuals decide with these added."
    )
    yield from theme.wrap(text, style="dim")
