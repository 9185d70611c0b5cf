"""The doctor's findings as text: what hurts first, each with the line that fixes it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Protocol

from qlora_planner.text import plain


class FindingLike(Protocol):
    """One finding, as the doctor hands it over."""

    @property
    def code(self) -> str:
        """What the finding is about."""

    @property
    def status(self) -> str:
        """ok, warning, problem or unknown."""

    @property
    def message(self) -> str:
        """What was found."""

    @property
    def fix(self) -> str | None:
        """The line to type, or the thing to do."""


class DoctorLike(Protocol):
    """All findings and the line that sums them up."""

    @property
    def findings(self) -> Sequence[FindingLike]:
        """In the order in which the rules ran."""

    @property
    def summary(self) -> str:
        """One line."""


_ORDER = ("problem", "warning", "unknown", "ok")
_STYLES = {"problem": "bold red", "warning": "yellow", "unknown": "magenta", "ok": "green"}
_INDENT = max(map(len, _ORDER)) + 2
_NARROWEST = 40

# A line is pieces of text, each with the style that a colour terminal gives it.
_Line = list[tuple[str, str]]


def render_doctor(doctor: DoctorLike, *, color: bool, width: int) -> str:
    """The findings, worst first, wrapped to `width` columns, then the summary; no newline at the end.

    Fixes are never wrapped, so that a command survives being copied.
    """
    lines = [*_findings(doctor.findings, max(width, _NARROWEST)), [], [(doctor.summary, "bold")]]
    if not color:
        return "\n".join(plain("".join(text for text, _ in line)).rstrip() for line in lines)
    return _in_color(lines)


def render_findings(findings: Sequence[FindingLike], *, color: bool, width: int) -> str:
    """Findings alone, in the same form: the causes of a pasted error line, say."""
    lines = list(_findings(findings, max(width, _NARROWEST)))
    return _in_color(lines) if color else "\n".join(plain("".join(text for text, _ in line)).rstrip() for line in lines)


def _findings(findings: Sequence[FindingLike], width: int) -> Iterator[_Line]:
    for finding in sorted(findings, key=lambda one: _ORDER.index(one.status)):
        quiet = "dim" if finding.status == "ok" else ""
        wrapped = textwrap.wrap(finding.message, width - _INDENT, break_long_words=False, break_on_hyphens=False) or [
            finding.code
        ]
        yield [(finding.status.ljust(_INDENT), _STYLES[finding.status]), (wrapped[0], quiet)]
        for more in wrapped[1:]:
            yield [(" " * _INDENT, ""), (more, quiet)]
        if finding.fix:
            yield [(" " * _INDENT, ""), ("fix: ", "dim"), (finding.fix, "cyan")]


def _in_color(lines: list[_Line]) -> str:
    # Here, not above: a piped answer does not wait for rich.
    from io import StringIO

    from rich.console import Console
    from rich.text import Text

    out = StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", highlight=False, legacy_windows=False)
    for line in lines:
        console.print(Text.assemble(*((plain(text), style) for text, style in line)), soft_wrap=True)
    return out.getvalue().removesuffix("\n")
