"""A verification as a screen: how far off the prediction was, where, and what the card and the host had to say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qlora_planner.evidence import Measurement
from qlora_planner.report.comparison import (
    Compared,
    compared_components,
    compared_phases,
    compared_process,
    compared_static,
)
from qlora_planner.report.parts.labels import component_label, gib, recipe
from qlora_planner.report.parts.theme import Line, Theme, columns
from qlora_planner.units import KIB, MIB, format_gib, format_mib, format_size

_NAMES = {
    "load": "loading",
    "prepare": "preparing",
    "adapters": "adapters",
    "eval": "evaluation",
    "save": "saving",
    "training": "all training",
    "process": "this process",
    "card": "whole card",
}
# What a residual is called that nobody would look twice at, and one that asks for an explanation.
_CLOSE, _OFF = 0.01, 0.03


def render_verification(
    measurement: Measurement,
    theme: Theme,
    *,
    floor_bytes: int | None = None,
    kept: str | None = None,
    ranks: Sequence[Measurement] = (),
) -> str:
    """The whole screen. `floor_bytes` is the least limit on torch under which the run worked, `kept` where the
    evidence was put; of several `ranks`, `measurement` is that of the one that is shown whole."""
    lines = [*_headline(measurement, theme), []]
    lines += theme.wrap(recipe(measurement.run), 6, "run", first_style="dim")
    lines += [
        *_card(measurement, theme),
        [],
        *_phases(measurement, theme),
        [],
        *_alive(measurement, theme),
        [],
        *_process(measurement, theme),
    ]
    if ranks:
        lines += [[], *_ranks(measurement, ranks)]
    if components := list(_components(measurement, theme)):
        lines += [[], *components]
    if speed := list(_speed(measurement, theme)):
        lines += [[], *speed]
    if floor_bytes is not None:
        lines += [
            [],
            *theme.wrap(f"works under a limit of {format_mib(floor_bytes)} on torch, and not below", style="bold"),
        ]
    for note in measurement.notes:
        lines += theme.wrap(note, 6, "note", first_style="yellow")
    if kept is not None:
        lines += theme.wrap(f"evidence kept in {kept}", style="dim")
    return theme.render(lines)


def _headline(measurement: Measurement, theme: Theme) -> Iterator[Line]:
    device = (
        "the CPU, at a toy size"
        if measurement.device == "cpu"
        else (measurement.gpu.name.removeprefix("NVIDIA ") if measurement.gpu else "GPU")
    )
    if measurement.outcome != "ok":
        yield from _failure(measurement, device, theme)
        return
    process = compared_process(measurement)[0]
    if process.residual is not None:
        text = (
            f"peak {format_gib(process.predicted)} predicted, {format_gib(process.measured)} measured"
            f" ({_percent(process.residual)})"
        )
    else:
        training = next(
            (row for row in compared_phases(measurement, "allocated_bytes") if row.name == "training"), None
        )
        text = "it ran" if training is None else f"{format_size(training.measured)} allocated at the peak of training"
    mark = theme.sign("✓", "+")
    yield from theme.wrap(
        f"{measurement.model} on {device}: {text}", first=f"{mark} ran: ", first_style="bold green", style="bold"
    )


def _failure(measurement: Measurement, device: str, theme: Theme) -> Iterator[Line]:
    """A run that did not end: what it wanted, and what was alive."""
    phase = _NAMES.get(measurement.failed_phase or "", measurement.failed_phase or "the start")
    if measurement.outcome != "out-of-memory":
        mark = theme.sign("✗", "x")
        yield from theme.wrap(
            f"{measurement.model} on {device}: {measurement.error}",
            first=f"{mark} failed in {phase}: ",
            first_style="bold red",
        )
        return
    request = "" if measurement.requested_bytes is None else f" asking for {format_size(measurement.requested_bytes)}"
    limit = "" if measurement.cap_bytes is None else f" under a limit of {format_mib(measurement.cap_bytes)}"
    mark = theme.sign("✗", "x")
    yield from theme.wrap(
        f"{measurement.model} on {device}, in {phase},{request}{limit}".replace(",,", ","),
        first=f"{mark} out of memory: ", first_style="bold red", style="bold",
    )  # fmt: skip
    held = [phase.allocated_bytes for phase in measurement.phases.values() if phase.allocated_bytes is not None]
    if held and measurement.cap_bytes is not None and measurement.requested_bytes is not None:
        short = max(held) + measurement.requested_bytes - measurement.cap_bytes
        if short > 0:
            yield from theme.wrap(f"short by {format_size(short)}, or more if blocks were cut up", 2)
    if measurement.predicted is not None:
        floor = measurement.predicted.get("floor_bytes")
        chance = (measurement.predicted.get("fit") or {}).get("probability_oom")
        odds = "" if chance is None else f", with a chance of {100 * chance:.0f} % of running out"
        yield from theme.wrap(f"predicted: it needs at least {format_gib(floor)}{odds}", 2)


def _card(measurement: Measurement, theme: Theme) -> Iterator[Line]:
    if measurement.gpu is None:
        return
    gpu, driver = measurement.gpu, measurement.stack.get("driver", "unknown")
    text = f"{gpu.name}, {format_mib(gpu.capacity_bytes)}, driver {driver}"
    if measurement.cap_bytes is not None:
        text += f"; torch limited to {format_mib(measurement.cap_bytes)}, as in the prediction"
    yield from theme.wrap(text, 6, "card", first_style="dim")


def _phases(measurement: Measurement, theme: Theme) -> Iterator[Line]:
    widths, left = (13, 9, 9, 8, 9, 9, 8), frozenset({0})
    yield columns([(head, "dim") for head in ("peaks", "", "allocated", "", "", "reserved", "")], widths, left)
    heads = (_unit(measurement), "predicted", "measured", "off", "predicted", "measured", "off")
    yield columns([(head, "dim") for head in heads], widths, left)
    reserved = {row.name: row for row in compared_phases(measurement, "reserved_bytes")}
    for row in compared_phases(measurement, "allocated_bytes"):
        style = "bold" if row.name == "training" else ""
        cells = [(_NAMES.get(row.name, row.name), style)]
        for part in (row, reserved[row.name]):
            cells += [
                (_size(measurement, part.predicted), style),
                (_size(measurement, part.measured), style),
                _off(part),
            ]
        yield columns(cells, widths, left)


def _alive(measurement: Measurement, theme: Theme) -> Iterator[Line]:
    yield from _table(measurement, f"alive, {_unit(measurement)}", compared_static(measurement))
    if measurement.device == "cpu":
        text = (
            "A card rounds every block up to 512 bytes, which a toy's tensors feel; its peaks are not predicted for a"
            " CPU, whose kernels take other scratch."
        )
        yield from theme.wrap(text, style="dim")


def _process(measurement: Measurement, theme: Theme) -> Iterator[Line]:
    rows = [row for row in compared_process(measurement) if row.predicted is not None or row.measured is not None]
    yield from _table(measurement, f"in all, {_unit(measurement)}", rows)


def _ranks(measurement: Measurement, ranks: Sequence[Measurement]) -> Iterator[Line]:
    """All training of every rank: what torch allocated and reserved there, and what the process held."""
    widths, left = (8, 15, 9, 9, 8), frozenset({0, 1})
    heads = ("rank", _unit(measurement), "predicted", "measured", "off")
    yield columns([(head, "dim") for head in heads], widths, left)
    for number, rank in enumerate(ranks):
        rows = [
            row.renamed(name)
            for name in ("allocated", "reserved")
            for row in compared_phases(rank, f"{name}_bytes")
            if row.name == "training" and row.measured is not None
        ]
        rows += [row.renamed("this process") for row in compared_process(rank)[:1] if row.measured is not None]
        if rank.outcome != "ok" or not rows:
            yield columns([(str(number), ""), (rank.outcome, "bold red")], widths[:2], left)
        for row in rows:
            sizes = [(_size(rank, size), "") for size in (row.predicted, row.measured)]
            yield columns([(str(number), ""), (row.name, ""), *sizes, _off(row)], widths, left)


def _components(measurement: Measurement, theme: Theme) -> Iterator[Line]:
    moment = "when it ran out" if measurement.outcome == "out-of-memory" else "at the peak"
    rows = [row for row in compared_components(measurement) if row.predicted or row.measured]
    if rows:
        yield from _table(measurement, f"{moment}, {_unit(measurement)}", rows, difference=True)


def _table(measurement: Measurement, head: str, rows: list[Compared], *, difference: bool = False) -> Iterator[Line]:
    """Predicted, measured, and how far off: in percent, or with `difference` in the unit of the rest."""
    widths, left = (24, 11, 11, 11), frozenset({0})
    heads = (head, "predicted", "measured", "residual" if difference else "off")
    yield columns([(text, "dim") for text in heads], widths, left)
    for row in rows:
        name = _NAMES.get(row.name) or component_label(row.name)
        last = _off(row)
        if difference:
            both = row.predicted is not None and row.measured is not None
            last = (f"{((row.measured or 0) - (row.predicted or 0)) / _scale(measurement):+,.1f}" if both else "-", "")
        cells = [(name, ""), (_size(measurement, row.predicted), ""), (_size(measurement, row.measured), ""), last]
        yield columns(cells, widths, left)


def _scale(measurement: Measurement) -> int:
    """A toy is told in KiB, everything else in MiB."""
    return KIB if measurement.toy else MIB


def _unit(measurement: Measurement) -> str:
    return "KiB" if measurement.toy else "MiB"


def _size(measurement: Measurement, size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / _scale(measurement):,.0f}"


def _speed(measurement: Measurement, theme: Theme) -> Iterator[Line]:
    if not measurement.step_s:
        return
    rest = measurement.step_s[1:]
    text = f"first step {measurement.step_s[0]:.2f} s"
    if rest:
        text += f", then {sum(rest) / len(rest):.2f} s each"
    if measurement.tokens_per_s is not None:
        text += f"; {measurement.tokens_per_s:,.0f} tokens/s"
    if measurement.timing_valid is False:
        text += f"; the card was shared ({gib(measurement.nvml.others_bytes)} GiB by others), so times do not count"
    yield from theme.wrap(text, 7, "speed", first_style="dim")


def _off(row: Compared) -> tuple[str, str]:
    if row.residual is None:
        return "-", "dim"
    size = abs(row.residual)
    return _percent(row.residual), "green" if size <= _CLOSE else "yellow" if size <= _OFF else "red"


def _percent(part: float) -> str:
    return f"{100 * part:+.2f} %"
