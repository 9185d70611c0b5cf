"""A launch in words: what is missing before it, how far it is, predicted memory beside live. Nothing is worked out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlora_planner.report.parts.labels import component_label, gib, mib
from qlora_planner.report.parts.theme import Line, Theme
from qlora_planner.tui.control.child_process import Launch
from qlora_planner.units import KIB, MIB

if TYPE_CHECKING:
    from qlora_planner.tui.control.launches import Launches
    from qlora_planner.tui.state import ExplorerState

_PHASES = {
    "data": "reading the data", "load": "loading the model", "prepare": "preparing", "adapters": "adding adapters",
    "tokenise": "tokenising", "rehearsal": "longest batch", "training": "training", "forward": "forward, loss",
    "backward": "backward", "generate": "generating", "optimizer": "optimizer", "eval": "evaluating", "save": "saving",
}  # fmt: skip
_COLUMNS = 24


def before(state: ExplorerState, launches: Launches, theme: Theme) -> list[Line]:
    """What would be started, and what is missing for it."""
    if state.subject is None:
        return [[("No model yet: choose one in Fit (1).", "")]]
    on = "the card of this machine" if launches.device == "cuda" else "the CPU, at a toy size"
    lines: list[Line] = [[(f"{state.subject.profile.id} on {on}", "bold")], []]
    ready = state.looked.value
    if ready is None:
        lines.append([(f"looking what is installed here {theme.ellipsis}", "italic")])
    else:
        lacks = ready.lacks(launches.device)
        if lacks is None:
            card = f": {ready.card}" if launches.device == "cuda" else ""
            lines.append([(f"{theme.glyph('fits')} everything that it needs is here{card}", "green")])
        else:
            lines += theme.wrap(lacks, 2, f"{theme.glyph('does-not-fit')} ", first_style="bold red")
            if launches.device == "cuda" and not ready.packages:
                lines += theme.wrap("d takes the CPU instead: the same steps with a toy of this model", 2)
    if state.refusal is not None:
        lines += theme.wrap(f"this run will not work: {state.refusal}", 2, "! ", first_style="magenta")
    toy = "a toy of this model at a toy length" if launches.device == "cpu" else "random weights"
    lines += [[], [("v verifies: ", "bold"), (f"{toy}, three real steps, predicted beside measured", "")]]
    import shlex

    lines += theme.wrap(shlex.join(["qlora-plan", *launches.words("verify")]), 2, "  ", style="cyan")
    lines += [[], [("b trains: ", "bold"), ("asks for data and folder, and needs the real weights", "")]]
    more = {"data": "train.jsonl" if state.data_source is None else state.data_source.path}
    return lines + theme.wrap(shlex.join(["qlora-plan", *launches.words("train", more)]), 2, "  ", style="cyan")


def status(launch: Launch, theme: Theme) -> list[Line]:
    """The command, how far it is or how it ended, and how to go on."""
    lines = theme.wrap(launch.line, 2, style="dim")
    if launch.running:
        phase = _PHASES.get(launch.phase, launch.phase or "starting")
        head: Line = [(f"{launch.words}: ", "bold"), (phase, "bold cyan")]
        if launch.of:
            head += [("  ", ""), *theme.gauge(launch.step, launch.of, _COLUMNS, "green")]
            head.append((f"  {launch.step}/{launch.of}", "bold"))
        elif launch.step:
            head.append((f", {launch.step} steps done", ""))
        if launch.asked_to_stop:
            head.append(("  stopping; x again stops at once", "bold yellow"))
        lines.append(head)
    else:
        good = launch.exit_code == 0
        style = "bold green" if good else "bold yellow" if launch.exit_code == 130 else "bold red"
        mark = theme.glyph("fits" if good else "does-not-fit")
        steps = f", {launch.step} steps" if launch.step else ""
        lines.append([(f"{mark} {launch.words} {launch.outcome()}{steps}", style)])
        if not good and launch.log and launch.exit_code != 130:
            lines += theme.wrap(launch.log[-1], 2, "  ", style="red")
        resume = launch.resume_line()
        if resume is not None:
            lines.append([("  r goes on: ", ""), (resume, "cyan")])
        if launch.verb == "train" and launch.answers_words() is not None:
            lines.append([("  a asks base and trained model the same prompts", "")])
    if launch.held_out:
        step, loss = launch.held_out[-1]
        lines.append([(f"held-out loss {loss:.4f} at step {step}", "")])
    return lines


def compared(launch: Launch) -> list[Line]:
    """A line per figure that a verification compared, predicted, measured, and how far off; KiB for a toy."""
    unit, scale = ("KiB", KIB) if launch.on_cpu else ("MiB", MIB)
    lines: list[Line] = [[(f"{f'{unit} compared':<22}{'predicted':>9}{'measured':>10}{'off':>9}", "dim")]]
    for part in ("static", "allocated", "process", "components"):
        for row in launch.compared.get(part) or ():
            predicted, measured = row["predicted_bytes"], row["measured_bytes"]
            if predicted is None or measured is None:
                continue
            off = f"{100 * (measured / predicted - 1):+.1f} %" if predicted else "-"
            label = component_label(row["name"])[:21]
            lines.append([(f"{label:<22}{predicted / scale:>9,.0f}{measured / scale:>10,.0f}{off:>9}", "")])
    return lines


def peaks(launch: Launch, theme: Theme) -> list[Line]:
    """A line per phase: MiB predicted, the most that NVML said, and how far off that is."""
    if launch.compared:
        return compared(launch)
    lines: list[Line] = [[(f"{'MiB by phase':<20}{'predicted':>10}{'live':>10}{'off':>8}", "dim")]]
    for name, seen in launch.peaks.items():
        predicted = launch.predicted_bytes(name)
        now = launch.running and name == launch.phase
        off = "" if seen is None or not predicted else f"{100 * (seen / predicted - 1):+.1f} %"
        mark = theme.sign("▸ ", "> ") if now else "  "
        label = _PHASES.get(name, name)
        expected = "-" if predicted is None else mib(predicted)
        live = "-" if seen is None else mib(seen)
        lines.append([(f"{mark}{label:<18}{expected:>10}{live:>10}{off:>8}", "bold" if now else "")])
    if launch.peaks and not launch.used:
        host = "" if launch.host_bytes is None else f"; host memory {gib(launch.host_bytes)} GiB"
        more = "; compared when it has ended" if launch.verb == "verify" and launch.on_cpu else ""
        lines.append([(f"  NVML says nothing here{host}{more}", "dim")])
    return lines
