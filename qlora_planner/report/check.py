"""A config of another tool as a screen: whether it fits, how it was read, and what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from qlora_planner.memory import MemoryEstimate
from qlora_planner.report.estimate import headline, phase_lines, problems, render_components
from qlora_planner.report.parts.labels import card_line, cards_line, gib, recipe
from qlora_planner.report.parts.theme import Line, Theme
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.text import listed
from qlora_planner.units import format_gib, format_mib


class Read(Protocol):
    """How a file was read."""

    @property
    def format(self) -> str:
        """What kind of file it is."""

    @property
    def not_modelled(self) -> Mapping[str, str]:
        """Keys that may change memory and are not in the figures, and why."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """Keys that are not known here."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Facts about how it was read."""


class Fix(Protocol):
    """A change by which it fits."""

    @property
    def costs(self) -> str:
        """What it costs."""

    @property
    def estimate(self) -> MemoryEstimate:
        """The memory then."""


def render_check(
    estimate: MemoryEstimate,
    gpu: GpuSpec,
    read: Read,
    fixes: Sequence[tuple[Fix, Mapping[str, Any]]],
    theme: Theme,
    *,
    explain: bool = False,
) -> str:
    """The whole screen. `fixes` are changes, the least harmful first, each with the keys to write."""
    lines = [*headline(estimate, gpu, theme), [], *_about(estimate, gpu, theme)]
    sections = [_reading(estimate, read, theme), _fixes(estimate, fixes, theme)]
    if estimate.machine is not None and estimate.machine.world > 1:
        sections.insert(0, phase_lines(estimate, theme))
    if explain:
        sections.append(render_components(estimate, theme))
    sections.append(problems(estimate, theme))
    for section in sections:
        if shown := list(section):
            lines += [[], *shown]
    return theme.render(lines)


def _about(estimate: MemoryEstimate, gpu: GpuSpec, theme: Theme) -> Iterator[Line]:
    yield from theme.wrap(recipe(estimate.run), 6, "run", first_style="dim")
    usable = f". A process can use {format_mib(estimate.fit.usable_bytes)}." if estimate.fit else ""
    yield from theme.wrap(card_line(gpu) + usable, 6, "card", first_style="dim")
    machine = estimate.machine
    if machine is not None and machine.world > 1:
        yield from theme.wrap(cards_line(machine, estimate.run.parallel), 6, "cards", first_style="dim")
    peak = estimate.peak
    text = (
        f"{peak.phase}, 90 % interval {gib(peak.low_bytes)} to {format_gib(peak.high_bytes)};"
        f" it still works with {format_gib(estimate.floor_bytes)}, as torch gives cached blocks back"
    )
    yield from theme.wrap(text, 6, "peak", first_style="dim")


def _reading(estimate: MemoryEstimate, read: Read, theme: Theme) -> Iterator[Line]:
    """What stands in for what, and what the figures leave out: an answer for another run would be worse than none."""
    for note in read.notes:
        yield from theme.wrap(note, 9, "read", first_style="dim")
    # What matters most stands at the head already.
    in_headline = {thing.what for thing in estimate.unmodelled if estimate.matters(thing)}
    for key, why in read.not_modelled.items():
        if why in in_headline:
            continue
        yield from theme.wrap(f"{key} is not in these figures: {why}", 9, "without", first_style="bold yellow")
    if read.unknown:
        text = f"not keys of {read.format}, as far as is known here: {listed(read.unknown)}"
        yield from theme.wrap(text, 9, "unknown", first_style="bold yellow")


def _fixes(estimate: MemoryEstimate, fixes: Sequence[tuple[Fix, Mapping[str, Any]]], theme: Theme) -> Iterator[Line]:
    if estimate.verdict not in ("tight", "does-not-fit"):
        return
    if not fixes:
        yield from theme.wrap("no change that is tried here makes it fit", style="bold")
        return
    for name, (fix, keys) in zip(("smallest change that fits", "or"), fixes, strict=False):
        yield [(name, "bold")]
        for key, value in keys.items():
            yield [(f"  {key}: {_yaml(value)}", "cyan")]
        floor, peak = fix.estimate.floor_bytes, fix.estimate.peak.device_bytes
        tight = "tightly: " if fix.estimate.verdict == "tight" else ""
        text = f"{tight}needs at least {format_gib(floor)}, peak {format_gib(peak)}; {fix.costs}"
        yield from theme.wrap(text, 2, "  ", style="dim")


def _yaml(value: Any) -> str:
    """A value as the file has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    return str(value)
