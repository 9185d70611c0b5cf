"""The memory of one run as a screen: the verdict first, then where the peak is and what it is made of."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from qlora_planner.catalog.gpus.several import card_words
from qlora_planner.catalog.parallel import BOUNDED
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.memory import Fit, MemoryEstimate
from qlora_planner.memory.records import STORED_QUANTIZED, ModelFacts, weakest
from qlora_planner.memory.unmodelled.qualified import told
from qlora_planner.report.parts.labels import (
    card_line,
    card_name,
    cards_line,
    chance,
    component_label,
    gib,
    mib,
    option,
    recipe,
    segments,
    speed_line,
    value,
)
from qlora_planner.report.parts.theme import SEGMENTS, VERDICT_WORDS, Line, Theme, columns, verdict_style
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.risk import format_risk
from qlora_planner.units import format_gib, format_mib, format_size

_NAMES = {
    "load": "loading",
    "prepare": "preparing",
    "adapters": "adding adapters",
    "wrap": "wrapping",
    "eval": "evaluation",
    "save": "saving",
}
_INDENT = 2
NOT_TRACED = "by formulas, as no training step of this run is recorded: less exact"


def render_estimate(
    estimate: MemoryEstimate, gpu: GpuSpec | None, theme: Theme, *, card: str | None = None, explain: bool = False
) -> str:
    """The whole screen; `card` is the card as it was typed.

    With `explain`, each component in exact bytes with its reason, adding up to the peak.
    """
    lines = [*headline(estimate, gpu, theme), [], *_about(estimate, gpu, theme), []]
    lines += phase_lines(estimate, theme)
    lines.append([])
    lines += render_components(estimate, theme) if explain else _components(estimate, theme)
    for part in (chosen(estimate, theme), problems(estimate, theme), _beside(estimate, theme)):
        if section := list(part):
            lines += [[], *section]
    lines += [[], *_next(estimate, card, theme, explain)]
    return theme.render(lines)


def headline(estimate: MemoryEstimate, gpu: GpuSpec | None, theme: Theme) -> Iterator[Line]:
    """The verdict, the figures it rests on, and the memory bar."""
    model, fit, peak = estimate.model.id, estimate.fit, estimate.peak
    refused = [problem for problem in estimate.problems if problem.blocking]
    if fit is None and refused:
        mark = f"{theme.glyph('will-not-run')} {VERDICT_WORDS['will-not-run']}: "
        style = verdict_style("will-not-run")
        yield from theme.wrap(model, first=mark, first_style=f"bold {style}", style="bold")
        for problem in refused:
            yield from theme.wrap(f"{problem.message}; use {problem.fix}", _INDENT)
        yield from theme.wrap(f"{_if_it_ran(estimate)}: peak {format_gib(peak.device_bytes)}", _INDENT)
        whole = peak.device_bytes
    elif fit is None:
        yield from theme.wrap(f"{model} needs {_about_gib(estimate)} at its peak", style="bold")
        if not is_traced(estimate):
            yield from theme.wrap(NOT_TRACED, _INDENT)
        text = f"90 % interval {gib(peak.low_bytes)} to {format_gib(peak.high_bytes)}; give --gpu for a verdict"
        yield from theme.wrap(text, _INDENT)
        for sentence in partial_sentences(estimate):
            yield from theme.wrap(sentence, _INDENT)
        whole = peak.device_bytes
    else:
        card = card_name(gpu, estimate.machine) if gpu else fit.gpu
        mark = f"{theme.glyph(fit.verdict)} {VERDICT_WORDS[fit.verdict]}: "
        style = verdict_style(fit.verdict)
        yield from theme.wrap(f"{model} on {card}", first=mark, first_style=f"bold {style}", style="bold")
        for sentence in verdict_sentences(estimate, fit):
            yield from theme.wrap(sentence, _INDENT)
        if not is_traced(estimate):
            text = f"{NOT_TRACED}: 90 % interval {gib(peak.low_bytes)} to {format_gib(peak.high_bytes)}"
            yield from theme.wrap(text, _INDENT)
        whole = fit.usable_bytes
    yield []
    yield from memory_bar(estimate.components, whole, theme)


def whose_shapes(model: ModelFacts) -> str | None:
    """Whose facts a model is answered from where they are another's: `same shapes as Qwen/Qwen2.5-7B`."""
    same = model.profile.same_shape_as
    return f"same shapes as {same}" if same else None


def is_traced(estimate: MemoryEstimate) -> bool:
    """Whether the figures come from a trace of this very run; else closed forms stand in."""
    return estimate.method == TRACED


def _about_gib(estimate: MemoryEstimate) -> str:
    """The peak, with a mark where closed forms stand in for a trace."""
    return f"{'' if is_traced(estimate) else '~'}{format_gib(estimate.peak.device_bytes)}"


def verdict_sentences(estimate: MemoryEstimate, fit: Fit) -> list[str]:
    """Why the verdict is what it is, in figures."""
    peak, usable, floor = _about_gib(estimate), fit.usable_bytes, estimate.floor_bytes
    if fit.verdict == "cannot-say":
        return list(fit.reasons)
    left_out = partial_sentences(estimate)
    if fit.verdict == "will-not-run":
        return [*fit.reasons, f"{_if_it_ran(estimate)}: peak {peak} of {format_gib(usable)} usable"]
    odds = f"chance of running out {chance(fit.probability_oom)}"
    taken = f"at most {format_risk(fit.risk)} passes (--risk)"
    if estimate.run.parallel in BOUNDED and fit.probability_oom is None:
        return [*left_out, *fit.reasons]
    if fit.verdict == "does-not-fit" and floor <= usable:
        needs = f"needs about {format_gib(floor)} of the {format_gib(usable)} usable, which is not sure enough"
        return [*left_out, f"{needs}: {odds}; {taken}", *fit.reasons[1:]]
    if fit.verdict == "does-not-fit":
        short = f"{format_size(floor - usable)} more than the {format_gib(usable)} usable"
        return [*left_out, f"needs at least {format_gib(floor)}, {short}; {odds}", *fit.reasons[1:]]
    if fit.verdict == "tight":
        odds += f"; {taken}"
    if fit.headroom_bytes < 0:
        return [
            f"peak {peak} is above the {format_gib(usable)} usable, but torch gives cached blocks back"
            f" under pressure: it needs at least {format_gib(floor)}; {odds}",
            *left_out,
        ]
    spare = f"{format_gib(fit.headroom_bytes)} to spare"
    return [f"peak {peak} of {format_gib(usable)} usable, {spare}; {odds}", *left_out]


def partial_sentences(estimate: MemoryEstimate) -> list[str]:
    """What the figures leave out, where it is more than their interval and yet cannot change the verdict."""
    things = [thing for thing in estimate.unmodelled if estimate.matters(thing)]
    return [f"partial, without {keys}: {what}" for keys, what in told(things)]


def _if_it_ran(estimate: MemoryEstimate) -> str:
    """Of what the figures are, where the run itself is refused."""
    if _of_a_copy(estimate):
        return "the memory of a bf16 copy of the model under this run"
    return "its memory, if it ran"


def _of_a_copy(estimate: MemoryEstimate) -> bool:
    """Whether the figures are not those of the weights that were named."""
    return any(problem.code == STORED_QUANTIZED for problem in estimate.problems)


def memory_bar(components: dict[str, int], whole: int, theme: Theme) -> Iterator[Line]:
    """The bar against what is usable, its share, and what its blocks mean."""
    parts = segments(components)
    used = sum(size for _, size in parts)
    share = f"{100 * used / whole:.0f} %" if whole > 0 else ""
    width = theme.width - _INDENT - 8
    yield [("  ", ""), *theme.bar(parts, whole, width), (f" {share:>6}", "bold")]
    legend: Line = [("  ", "")]
    for name, size in parts:
        label, style, block, ascii_block = SEGMENTS[name]
        legend += [(block if theme.unicode else ascii_block, style), (f" {label} {gib(size)}  ", "")]
    legend.append(("GiB", "dim"))
    if sum(len(text) for text, _ in legend) > theme.width:
        for name, size in parts:
            label, style, block, ascii_block = SEGMENTS[name]
            yield [("  ", ""), (block if theme.unicode else ascii_block, style), (f" {label} {gib(size)} GiB", "")]
    else:
        yield legend


def _about(estimate: MemoryEstimate, gpu: GpuSpec | None, theme: Theme) -> Iterator[Line]:
    if named := whose_shapes(estimate.model):
        yield from theme.wrap(named, 6, "model", first_style="dim")
    yield from theme.wrap(recipe(estimate.run), 6, "run", first_style="dim")
    if gpu is not None and estimate.fit is not None:
        text = f"{card_line(gpu)}. A process can use {format_mib(estimate.fit.usable_bytes)}."
        yield from theme.wrap(text, 6, "card", first_style="dim")
    if estimate.machine is not None and estimate.machine.world > 1:
        yield from theme.wrap(cards_line(estimate.machine, estimate.run.parallel), 6, "cards", first_style="dim")
    if (speed := speed_line(estimate.speed)) is not None:
        yield from theme.wrap(speed, 6, "speed", first_style="dim")


def phase_lines(estimate: MemoryEstimate, theme: Theme) -> Iterator[Line]:
    """Each phase of a card in MiB."""
    widths, left = (17, 11, 11, 11, 8), frozenset({0, 4})
    heads = ("phase", "allocated", "reserved", "device", "MiB")
    yield columns([(head, "dim") for head in heads], widths, left)
    for phase in estimate.phases:
        name = _NAMES.get(phase.name, phase.name)
        if phase.device_bytes is None:
            yield columns([(name, "dim"), *[("-", "dim")] * 3, ("", "")], widths, left)
            continue
        top = phase.name == estimate.peak.phase
        style = "bold" if top else ""
        figures = (phase.allocated_bytes, phase.reserved_bytes, phase.device_bytes)
        mark = theme.sign("◀ peak", "< peak") if top else ""
        yield columns([(name, style), *((mib(figure), style) for figure in figures), (mark, "bold red")], widths, left)
    peak = estimate.peak
    interval = f"90 % interval of the peak {mib(peak.low_bytes)} to {mib(peak.high_bytes)} MiB"
    yield from theme.wrap(
        f"{interval}; it still works with {mib(estimate.floor_bytes)} MiB, as torch gives cached blocks back",
        style="dim",
    )


def _components(estimate: MemoryEstimate, theme: Theme) -> Iterator[Line]:
    widths, left = (24, 10, 7, 12), frozenset({0, 3})
    total = estimate.peak.device_bytes
    peak = _NAMES.get(estimate.peak.phase, estimate.peak.phase)
    heads = (f"at the peak ({peak})", "MiB", "share", "known how")
    yield columns([(head, "dim") for head in heads], widths, left)
    for line in estimate.lines:
        style = "" if line.size_bytes else "dim"
        share = f"{100 * line.size_bytes / total:.0f} %" if total else "-"
        cells = (component_label(line.component.value), mib(line.size_bytes), share, line.basis.value)
        yield columns([(cell, style) for cell in cells], widths, left)
    basis = weakest([line.basis for line in estimate.lines if line.size_bytes])
    yield columns([("device peak", "bold"), (mib(total), "bold"), ("", ""), (basis.value, "dim")], widths, left)


def render_components(estimate: MemoryEstimate, theme: Theme) -> Iterator[Line]:
    """Each component in exact bytes with its reason, so that they add up by hand."""
    widths, left = (24, 20, 12), frozenset({0, 2})
    peak = _NAMES.get(estimate.peak.phase, estimate.peak.phase)
    yield columns([(f"at the peak ({peak})", "dim"), ("bytes", "dim"), ("known how", "dim")], widths, left)
    for line in estimate.lines:
        name = component_label(line.component.value)
        yield columns([(name, "bold"), (f"{line.size_bytes:,}", ""), (line.basis.value, "dim")], widths, left)
        yield from theme.wrap(line.why, 4, "   ", style="dim")
    total = sum(line.size_bytes for line in estimate.lines)
    yield columns([("", ""), (theme.sign("─", "-") * 20, "dim"), ("", "")], widths, left)
    yield columns([("sum = device peak", "bold"), (f"{total:,}", "bold"), (format_mib(total), "")], widths, left)


def chosen(estimate: MemoryEstimate, theme: Theme) -> Iterator[Line]:
    """What each auto option became and why."""
    if not estimate.resolved:
        return
    yield [("chosen for you", "dim")]
    run = estimate.run.to_dict()
    for name, why in estimate.resolved.items():
        first = f"  {option(name)[2:]} {value(run.get(name))}"
        yield from theme.wrap(why, 30, f"{first}  ", style="dim")


def problems(estimate: MemoryEstimate, theme: Theme) -> Iterator[Line]:
    """Everything to know about the run, each with what to do; fixes stay on one line to be copied."""
    for problem in estimate.problems:
        word, style = ("refused", "bold red") if problem.blocking else ("note", "yellow")
        yield from theme.wrap(problem.message, 9, word, first_style=style)
        if problem.fix:
            yield from theme.wrap(problem.fix, 9, "  fix:", style="cyan", first_style="dim")


def _beside(estimate: MemoryEstimate, theme: Theme) -> Iterator[Line]:
    host = estimate.host
    host_bytes = {
        "of paged optimizer states, which move to the card while there is room": host.paged_bytes,
        "of offloaded activations": host.offloaded_bytes,
        "while the checkpoint is read": host.load_peak_bytes,
    }
    sizes = [f"{format_size(size)} {what}" for what, size in host_bytes.items() if size]
    if host.load_file_bytes:
        sizes[-1] += f", {format_size(host.load_file_bytes)} of it mapped files, which the kernel takes back at need"
    if sizes:
        yield from theme.wrap("; ".join(sizes), 17, "in host memory", first_style="dim")


def _next(estimate: MemoryEstimate, card: str | None, theme: Theme, explain: bool) -> Iterator[Line]:
    """Where to go on: to a run that works, if this one does not."""
    if card is not None and estimate.verdict in ("does-not-fit", "will-not-run") and not _of_a_copy(estimate):
        yield from next_command(f"qlora-plan {{}} {card_words(card)}", estimate.model.id, theme)
        yield from theme.wrap("(looks for a run of this model that fits)", 6, style="dim")
    elif not explain:
        yield from theme.wrap("--explain shows the arithmetic behind each figure, --json everything", style="dim")


def next_command(text: str, model: str, theme: Theme, path: str | None = None) -> Iterator[Line]:
    """`next:` and a command with `{}` for the model; a long name loses its organisation, so that nothing wraps.

    A model that was named by the `path` of its folder keeps that.
    """
    if path is not None:
        yield [("next: ", "bold"), (text.format(shlex.quote(path)), "cyan")]
        return
    full = text.format(model)
    short = text.format(model.rpartition("/")[2])
    yield [("next: ", "bold"), (full if len(full) + 6 <= theme.width else short, "cyan")]
