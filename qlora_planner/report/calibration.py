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
    "proved-form": "formulas, where proved",
    "other-form": "formulas, elsewhere",
}


def render_calibration(calibration: Calibration, used: int, everything: int, path: str, theme: Theme) -> str:
    """The whole screen; `used` of `everything` measured runs could be compared."""
    mark = theme.sign("✓", "+")
    text = f"{used} of {everything} verifications (repeats, limits and failures say nothing here)"
    lines = [*theme.wrap(text, first=f"{mark} calibrated from ", first_style="bold green"), []]
    lines += _contexts(calibration, theme)
    lines += [[], *_residuals(calibration, theme), []]
    if calibration.speed:
        lines += [*_speed(calibration, theme), []]
    lines += theme.wrap(f"kept in {path}; estimates use it from now on", style="dim")
    return theme.render(lines)


def to_document(calibration: Calibration) -> dict[str, Any]:
    """The calibration with its leave-one-out figures, JSON-ready."""
    held = {
        method: {
            figure: asdict(judged) for figure in FIGURES if (judged := calibration.held_out(method, figure)) is not None
        }
        for method in calibration.residuals
    }
    return {"calibration": calibration.to_dict(), "held_out": held}


def _contexts(calibration: Calibration, theme: Theme) -> Iterator[Line]:
    if not calibration.contexts:
        yield from theme.wrap("no context learnt: the driver gave no figure for the process", style="yellow")
        return
    widths, left = (20, 12, 13, 17, 4), frozenset({0})
    heads = ("context, by card", "first tensor", "end of a step", "from - to", "runs")
    yield columns([(head, "dim") for head in heads], widths, left)
    for card, context in calibration.contexts.items():
        low, high = (format_mib(size).removesuffix(" MiB") for size in (context.low_bytes, context.high_bytes))
        cells = (
            theme.cut(card, 20), format_mib(context.first_tensor_bytes),
            format_mib(context.first_tensor_bytes + context.kernels_bytes), f"{low} - {high} MiB", str(context.count),
        )  # fmt: skip
        yield columns([(cell, "") for cell in cells], widths, left)


def _speed(calibration: Calibration, theme: Theme) -> Iterator[Line]:
    widths, left = (20, 9, 10, 10, 13, 4, 10), frozenset({0})
    heads = ("speed, by card", "products", "attention", "bandwidth", "launch, us", "runs", "left out")
    yield columns([(head, "dim") for head in heads], widths, left)
    for card, efficiency in calibration.speed.items():
        parts = (efficiency.product_fraction, efficiency.attention_fraction, efficiency.bandwidth_fraction)
        cells = (
            theme.cut(card, 20), *(f"{100 * part:.0f} %" for part in parts),
            f"{1e6 * efficiency.launch_s:.0f} and {1e6 * efficiency.engine_launch_s:.0f}", str(efficiency.count),
            "-" if efficiency.mean_abs_log is None else f"{100 * (exp(efficiency.mean_abs_log) - 1):.0f} %",
        )  # fmt: skip
        yield columns([(cell, "") for cell in cells], widths, left)
    text = (
        "parts of the data sheet's rates, and the time of a kernel's launch forwards and backwards, from runs that had"
        " the card for themselves; left out: how far off each run is by what the others teach"
    )
    yield from theme.wrap(text, style="dim")


def _residuals(calibration: Calibration, theme: Theme) -> Iterator[Line]:
    widths, left = (26, 9, 4, 9, 7, 13), frozenset({0, 1})
    heads = ("measured over predicted", "figure", "runs", "mean abs.", "worst", "90 % width")
    yield columns([(head, "dim") for head in heads], widths, left)
    for method in METHODS:
        for figure in FIGURES:
            held_out = calibration.held_out(method, figure)
            if held_out is None:
                continue
            if held_out.inside is None or held_out.median_width is None:
                judged = "too few"
            else:
                judged = f"{100 * held_out.median_width:.1f} %, {held_out.inside}/{held_out.count}"
            errors = (f"{100 * held_out.mean_abs:.2f} %", f"{100 * held_out.worst:+.1f} %")
            cells = (_WORDS[method], figure, str(held_out.count), *errors, judged)
            yield columns([(cell, "") for cell in cells], widths, left)
    text = (
        "90 % width: of the interval that the other runs give each, and how many lie in theirs (leave one out). With"
        f" fewer than {FEWEST + 1} runs, the shipped residuals decide with these added."
    )
    yield from theme.wrap(text, style="dim")
