"""Answers of base and tuned model as a screen: two columns where there is room for them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from qlora_planner.report.parts.theme import Line, Theme

_GAP = 3


def render_side_by_side(answers: Sequence[Mapping[str, Any]], theme: Theme) -> str:
    """For each prompt what the base wrote on the left, the tuned model on the right, and below what the data has."""
    column = (theme.width - _GAP) // 2
    lines: list[Line] = []
    for answer in answers:
        lines += [*theme.wrap(answer["prompt"], 2, "> ", style="bold", first_style="dim")]
        lines.append([("base".ljust(column + _GAP), "dim"), ("tuned", "dim")])
        for left, right in zip_longest(*(_wrapped(answer[name], column) for name in ("base", "tuned")), fillvalue=""):
            lines.append([(left.ljust(column + _GAP), ""), (right, "green")])
        if answer["expected"] is not None:
            lines += theme.wrap(" ".join(answer["expected"].split()), 10, "the data", first_style="dim")
        lines.append([])
    return theme.render(lines[:-1])


def _wrapped(text: str, width: int) -> list[str]:
    """Paragraphs apart; an answer without a word is said."""
    lines = [line for part in text.strip().splitlines() for line in textwrap.wrap(part, width) or [""]]
    return lines or ["(nothing)"]
