"""The doctor's findings as text: what hurts first, each with the line that fixes it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from qlora_planner.report.parts.theme import Line, Theme

if TYPE_CHECKING:
    from qlora_planner.diagnose.doctor import Doctor, Finding

_ORDER = ("problem", "warning", "unknown", "ok")
_STYLES = {"problem": "bold red", "warning": "yellow", "unknown": "magenta", "ok": "green"}
_INDENT = max(map(len, _ORDER)) + 2
_NARROWEST = 40


def render_doctor(doctor: Doctor, *, color: bool, width: int) -> str:
    """The findings, worst first, wrapped to `width` columns, then the summary; no newline at the end.

    Fixes are never wrapped, so that a command survives being copied.
    """
    lines = [*_findings(doctor.findings, max(width, _NARROWEST)), [], [(doctor.summary, "bold")]]
    return Theme(color=color).render(lines)


def render_findings(findings: Sequence[Finding], *, color: bool, width: int) -> str:
    """Findings alone, in the same form: the causes of a pasted error line, say."""
    return Theme(color=color).render(_findings(findings, max(width, _NARROWEST)))


def _findings(findings: Sequence[Finding], width: int) -> Iterator[Line]:
    for finding in sorted(findings, key=lambda finding: _ORDER.index(finding.status)):
        quiet = "dim" if finding.status == "ok" else ""
        wrapped = textwrap.wrap(finding.message, width - _INDENT, break_long_words=False, break_on_hyphens=False) or [
            finding.code
        ]
        yield [(finding.status.ljust(_INDENT), _STYLES[finding.status]), (wrapped[0], quiet)]
        for more in wrapped[1:]:
            yield [(" " * _INDENT, ""), (more, quiet)]
        if finding.fix:
            yield [(" " * _INDENT, ""), ("fix: ", "dim"), (finding.fix, "cyan")]
