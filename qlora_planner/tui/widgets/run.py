"""An estimate as coloured text for panes of any width: verdict, memory bar, phases, problems. Nothing is worked out."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qlora_planner.catalog.gpus.remarks import remarks
from qlora_planner.memory import MemoryEstimate
from qlora_planner.report.estimate import verdict_sentences
from qlora_planner.report.parts.labels import COMPONENTS, component_label, gib, mib, segments, speed_line
from qlora_planner.report.parts.theme import SEGMENTS, VERDICT_WORDS, Line, Theme, verdict_style
from qlora_planner.spec.machine import GpuSpec

BLOCKS = {"weights": "bright_blue", "training": "cyan", "activations": "yellow", "overhead": "magenta"}


def as_text(lines: Iterable[Line]) -> Text:
    """The lines of a report as one text."""
    return Text("\n").join(Text.assemble(*line) for line in lines)


def verdict_text(estimate: MemoryEstimate, theme: Theme) -> Text:
    """The verdict and the figures it rests on."""
    fit = estimate.fit
    assert fit is not None, "the explorer always has a card"
    style = verdict_style(fit.verdict)
    lines: list[Line] = [[(f"{theme.glyph(fit.verdict)} {VERDICT_WORDS[fit.verdict]}", f"bold {style}")]]
    for sentence in verdict_sentences(estimate, fit):
        lines += theme.wrap(sentence)
    if (speed := speed_line(estimate.speed)) is not None:
        lines += theme.wrap(speed, style="dim")
    return as_text(lines)


def bar_text(estimate: MemoryEstimate, theme: Theme) -> Text:
    """The memory of the peak by component group against what the card lets a process use."""
    fit = estimate.fit
    assert fit is not None, "the explorer always has a card"
    parts, whole = segments(estimate.components), fit.usable_bytes
    used = sum(size for _, size in parts)
    share = f" {100 * used / whole:.0f}%" if whole > 0 else ""
    lines: list[Line] = [[*theme.bar(parts, whole, max(8, theme.width - 6)), (f"{share:>6}", "bold")]]
    legend: Line = []
    for name, size in parts:
        label, style, block, plain = SEGMENTS[name]
        piece = f" {label} {gib(size)}  "
        if legend and sum(len(text) for text, _ in legend) + len(piece) + 1 > theme.width:
            lines.append(legend)
            legend = []
        legend += [(block if theme.unicode else plain, style), (piece, "")]
    return as_text([*lines, [*legend, ("GiB", "dim")]])


def phases_text(estimate: MemoryEstimate, theme: Theme) -> Text:
    """Device MiB of every phase as a bar by component group, where those are known, the peak marked."""
    top = max(1, estimate.peak.device_bytes)
    room = max(6, theme.width - 12 - 9 - 7)
    lines: list[Line] = []
    for phase in estimate.phases:
        size = phase.device_bytes
        if size is None:
            continue
        peak = phase.name == estimate.peak.phase
        if phase.components is not None:
            bar = theme.bar(segments({part.value: size for part, size in phase.components.items()}), top, room)
        else:
            cells = max(1, round(room * size / top))
            bar = [(theme.sign("▄", "=") * cells, "cyan"), (" " * (room - cells), "")]
        lines.append(
            [
                (f"{phase.name:<11}", "bold" if peak else ""), *bar, (f"{mib(size):>9}", "bold" if peak else ""),
                (theme.sign(" ◀ peak", " < peak") if peak else "", "bold red"),
            ]
        )  # fmt: skip
    peak_line = f"90 % interval {mib(estimate.peak.low_bytes)} to {mib(estimate.peak.high_bytes)} MiB; needs at least "
    return as_text([*lines, *theme.wrap(peak_line + f"{mib(estimate.floor_bytes)} MiB", style="dim")])


def preview_text(title: str, estimate: MemoryEstimate, theme: Theme) -> Text:
    """A run in short, under what leads to it: verdict, memory against the card, phases."""
    parts = (verdict_text(estimate, theme), bar_text(estimate, theme), phases_text(estimate, theme))
    return Text("\n\n").join([Text(title, style="bold"), *parts])


def breakdown(estimate: MemoryEstimate) -> list[tuple[str, str, str, str, str]]:
    """A row per component: label, MiB, share, how it is known, colour of its block; the peak last."""
    total = estimate.peak.device_bytes
    rows = [
        (
            component_label(line.component.value), mib(line.size_bytes),
            f"{100 * line.size_bytes / total:.0f}%" if total else "-", line.basis.value,
            BLOCKS[COMPONENTS[line.component.value][1]],
        )
        for line in estimate.lines
    ]  # fmt: skip
    return [*rows, ("device peak", mib(total), "", "", "")]


def why_text(estimate: MemoryEstimate, at: int, theme: Theme) -> Text:
    """Why one line of the breakdown has its size, in exact bytes."""
    if at >= len(estimate.lines):
        text = f"the components add up to {estimate.peak.device_bytes:,} bytes, in the phase {estimate.peak.phase}"
        return as_text(theme.wrap(text))
    line = estimate.lines[at]
    name = component_label(line.component.value)
    return as_text(theme.wrap(f"{line.size_bytes:,} bytes; {line.why}", 2, f"{name}: ", first_style="bold"))


def card_lines(gpu: GpuSpec, theme: Theme) -> list[Line]:
    """What is to be known about a card whatever runs on it, each with what to do."""
    lines: list[Line] = []
    for remark in remarks(gpu):
        lines += theme.wrap(remark.message, 2, "! ", first_style="bold yellow")
        lines += theme.wrap(remark.fix, 7, "  fix: ", style="dim")
    return lines


def problems_text(estimate: MemoryEstimate, theme: Theme) -> Text:
    """What is to be known about the run, each with its fix; empty where there is nothing."""
    lines: list[Line] = []
    for problem in estimate.problems:
        style = "magenta" if problem.blocking else "yellow"
        lines += theme.wrap(problem.message, 2, "! ", first_style=f"bold {style}")
        lines += theme.wrap(problem.fix, 7, "  fix: ", style="dim")
    return as_text(lines)
