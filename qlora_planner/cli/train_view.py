"""What a training run shows on stderr while it runs: a live view on a terminal, plain lines elsewhere; and what it
keeps of it in metrics.jsonl and log.txt."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qlora_planner.cli.progress import on_terminal
from qlora_planner.cli.streams import say
from qlora_planner.errors import MissingError, RunError
from qlora_planner.report.theme import Theme
from qlora_planner.units import format_gib, format_size

if TYPE_CHECKING:
    from rich.text import Text

    from qlora_planner.launch.folder import RunFolder
    from qlora_planner.launch.record import Metrics
    from qlora_planner.launch.supervise import Attempt
    from qlora_planner.measure.verify import Progress

_PHASES = {
    "data": "reading the data",
    "load": "loading the model",
    "prepare": "preparing the model",
    "adapters": "adding adapters",
    "tokenise": "tokenising the data",
    "rehearsal": "trying the longest batch",
    "training": "training",
    "save": "saving",
}
# Phases of an estimate by those of a run; the longest batch and training are held against the peak of all.
_PREDICTED = {"load": "load", "prepare": "prepare", "adapters": "adapters", "save": "save"}
_TOLD = ("loss", "learning_rate", "grad_norm", "step_s", "tokens", "tokens_per_s")
_SPARKS = "▁▂▃▄▅▆▇█"
_FIRST_STEPS, _STEP_S = 10, 1.0
_SPARKS_KEPT, _BAR_COLUMNS, _LATELY, _CARD_S = 48, 32, 20, 2.0


class Watch:
    """Everything that was heard of a run: keeps it, warns once when the peak passes the plan, words it."""

    def __init__(
        self,
        what: str,
        *,
        metrics: Metrics,
        folder: RunFolder,
        whole_bytes: int | None,
        predicted: Mapping[str, Any] | None,
        card: int | None,
        out: Callable[[str], None],
    ) -> None:
        self.what, self.whole_bytes, self.predicted, self._out = what, whole_bytes, predicted, out
        self._metrics, self._folder, self._card = metrics, folder, card
        self.notes: list[str] = []
        self.phase, self.step, self.of = "starting", 0, 0
        self._stage = ""
        self._stage_peak: int | None = None
        self.losses: list[float] = []
        self.last: Mapping[str, Any] = {}
        self.used_bytes: int | None = None
        self.peak_bytes: int | None = None
        self.temperature: str = ""
        self._times: list[float] = []
        self._warned = False
        self._looked = self._said_step = 0.0

    def hear(self, told: Progress) -> None:
        """Take one event in."""
        facts = told.facts
        if told.event == "memory":
            self._memory(facts)
        elif told.event == "phase":
            self._entered(str(facts.get("phase")))
        elif told.event == "note":
            self.note(str(facts["message"]))
        elif told.event == "data":
            done = facts["done_bytes"] / facts["size_bytes"] if facts["size_bytes"] else 1.0
            self.phase = f"{_PHASES['data']}: {done:.0%}, {facts['rows']:,} rows"
            self.line(self.phase)
        elif told.event == "rehearsed":
            self.line(
                f"the longest batch works: {facts['rows']} x {facts['longest']:,} of {facts['seq_len']:,} tokens, loss"
                f" {facts['loss']:.3f}{self._words_of_memory(facts)}"
            )
            self._keep("rehearsed", facts)
        elif told.event == "begin":
            self.step, self.of = int(facts["step"]), int(facts["of"])
        elif told.event == "step":
            self._stepped(facts)
        elif told.event == "evaluation":
            self.line(f"step {facts['step']}: held-out loss {_figure(facts['eval_loss'])}")
            self._keep("evaluation", facts)
        elif told.event == "checkpoint":
            self.line(f"step {facts['step']}: checkpoint kept")
            self._keep("checkpoint", {"step": facts["step"]})
        self._look()

    def _entered(self, stage: str) -> None:
        """A phase begins: what the one before took at the most is kept beside its prediction."""
        self.close_phase()
        self._stage = stage
        self.phase = _PHASES.get(stage, stage)
        self.line(self.phase)

    def close_phase(self) -> None:
        """The phase is over."""
        if self._stage_peak is not None:
            facts = {"phase": self._stage, "device_bytes": self._stage_peak, "predicted_bytes": self.planned_bytes()}
            self._keep("phase", facts)
        self._stage_peak = None

    def planned_bytes(self) -> int | None:
        """What the plan says for the phase that runs; None where there is no plan, or it says nothing."""
        if self.predicted is None:
            return None
        name = _PREDICTED.get(self._stage)
        if name is None:
            peak: int = self.predicted["peak"]["device_bytes"]
            return peak
        return next((one["device_bytes"] for one in self.predicted.get("phases") or () if one["name"] == name), None)

    def began(self, number: int, from_step: int) -> None:
        """An attempt begins: what metrics.jsonl says of later steps is done again."""
        self._keep("attempt", {"number": number, "from_step": from_step})

    def plans(self, predicted: Mapping[str, Any] | None) -> None:
        """The next attempt is another run: its memory is held against its own prediction."""
        self.predicted, self.peak_bytes, self._warned = predicted, None, False

    def ended(self, attempt: Attempt) -> None:
        """How an attempt ended, and what the next one changes."""
        self.close_phase()
        if attempt.rung is not None:
            self.note(f"{attempt.says}")
            where = "from the beginning" if attempt.checkpoint is None else f"from {attempt.checkpoint}"
            self.note(f"going on {where} with {attempt.rung}")

    def note(self, text: str) -> None:
        """Something to know: shown, logged, and kept for the summary."""
        if text not in self.notes:
            self.notes.append(text)
        self.line(text)

    def line(self, text: str) -> None:
        """One plain line, on stderr and in log.txt."""
        self._out(text)
        try:
            with self._folder.log.open("a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        except OSError as error:
            self._cannot_keep(f"{self._folder.log} cannot be written: {error.strerror or error}")

    def _keep(self, kind: str, facts: Mapping[str, Any]) -> None:
        try:
            self._metrics.add(kind, facts)
        except RunError as error:
            self._cannot_keep(str(error))

    def _cannot_keep(self, text: str) -> None:
        """Said once: a full disk ends a run when a checkpoint cannot be saved, not when a line cannot."""
        if text not in self.notes:
            self.notes.append(text)
            self._out(text)

    def _stepped(self, facts: Mapping[str, Any]) -> None:
        self.step, self.of, self.last = int(facts["step"]), int(facts["of"]), facts
        if facts.get("loss") is not None:
            self.losses.append(float(facts["loss"]))
        if facts.get("step_s") is not None:
            self._times = [*self._times, float(facts["step_s"])][-_LATELY:]
        memory = {"process_bytes": self.used_bytes} if self.used_bytes is not None else {}
        self._keep("step", {**facts, **memory})
        now = time.monotonic()
        # metrics.jsonl has every step; a run of short ones would bury everything else that is said.
        if self.step <= _FIRST_STEPS or self.step == self.of or now - self._said_step >= _STEP_S:
            self._said_step = now
            self.line(self.words())

    def _memory(self, facts: Mapping[str, Any]) -> None:
        used = facts.get("process_bytes")
        self.used_bytes = facts.get("device_bytes") if used is None else used
        if self.used_bytes is None:
            return
        self.peak_bytes = max(self.peak_bytes or 0, self.used_bytes)
        if used is not None:
            self._stage_peak = max(self._stage_peak or 0, used)
        high = None if self.predicted is None or used is None else self.predicted["peak"]["high_bytes"]
        if high is not None and self.peak_bytes > high and not self._warned:
            self._warned = True
            self.note(
                f"the peak of {format_gib(self.peak_bytes)} is above what was planned at the most, {format_gib(high)}"
            )

    def _look(self) -> None:
        """The card's temperature and power, now and then."""
        if self._card is None or time.monotonic() - self._looked < _CARD_S:
            return
        from qlora_planner.measure.nvml import visible_devices

        self._looked = time.monotonic()
        try:
            card = visible_devices()[self._card]
        except (MissingError, IndexError):
            self._card = None
            return
        known = [None if card.temperature_c is None else f"{card.temperature_c} °C",
                 None if card.power_w is None else f"{card.power_w:.0f} W"]  # fmt: skip
        self.temperature = ", ".join(one for one in known if one)

    @property
    def left_s(self) -> float | None:
        """Seconds until the last step, by the steps of late."""
        if not self._times or not self.of:
            return None
        return (self.of - self.step) * sum(self._times) / len(self._times)

    def words(self) -> str:
        """The last step in one line."""
        facts = self.last
        parts = [f"step {self.step}/{self.of}: loss {_figure(facts.get('loss'))}"]
        if facts.get("learning_rate") is not None:
            parts.append(f"lr {facts['learning_rate']:.2e}")
        if facts.get("tokens_per_s") is not None:
            parts.append(f"{facts['tokens_per_s']:,.0f} tokens/s")
        if self.used_bytes is not None:
            parts.append(f"{format_gib(self.used_bytes)}")
        if self.temperature:
            parts.append(self.temperature)
        if self.left_s is not None:
            parts.append(f"{_duration(self.left_s)} left")
        return ", ".join(parts)

    def _words_of_memory(self, facts: Mapping[str, Any]) -> str:
        if facts.get("allocated_peak_bytes") is None:
            return ""
        return f", {format_gib(facts['allocated_peak_bytes'])} allocated at the peak"

    def view(self, theme: Theme) -> Text:
        """The live view, three lines."""
        from rich.text import Text

        head: list[tuple[str, str]] = [(f"{self.what}  ", "bold"), (self.phase, "cyan")]
        if self.of:
            head += [("  ", ""), *theme.gauge(self.step, self.of, _BAR_COLUMNS, "green")]
            head += [
                (f"  {self.step}/{self.of}", "bold"),
                (f"  {_duration(self.left_s)} left" if self.left_s else "", ""),
            ]
        lines = [Text.assemble(*head)]
        if self.losses:
            facts = self.last
            lines.append(Text.assemble(
                ("loss ", "dim"), (f"{self.losses[-1]:.4f} ", "bold"),
                (spark(self.losses) if theme.unicode else "", "cyan"),
                ("  lr ", "dim"), f"{facts.get('learning_rate') or 0:.2e}",
                ("  ", ""), f"{facts.get('tokens_per_s') or 0:,.0f}", (" tokens/s", "dim"),
            ))  # fmt: skip
        memory = self._memory_line(theme)
        return Text("\n").join([*lines, Text.assemble(*memory)] if memory else lines)

    def _memory_line(self, theme: Theme) -> list[tuple[str, str]]:
        if self.used_bytes is None or not self.whole_bytes:
            host = self.last.get("host_peak_bytes")
            return [("memory ", "dim"), (f"{format_size(host)} of host memory", "")] if host else []
        planned = self.planned_bytes()
        over = self.peak_bytes is not None and planned is not None and self.peak_bytes > planned
        line = [
            ("memory ", "dim"),
            *theme.gauge(self.used_bytes, self.whole_bytes, _BAR_COLUMNS, "yellow" if over else "cyan"),
        ]
        line.append((f" {format_gib(self.used_bytes)} now, {format_gib(self.peak_bytes)} at the peak", "bold"))
        if planned is not None:
            when = " for this phase" if self._stage in _PREDICTED else ""
            line.append((f", {format_gib(planned)} predicted{when}", "dim"))
        return [*line, (f"  {self.temperature}", "dim")]


def spark(values: list[float]) -> str:
    """The last values as blocks, lowest to highest."""
    shown = values[-_SPARKS_KEPT:]
    low, high = min(shown), max(shown)
    return "".join(_SPARKS[round((value - low) / (high - low) * 7) if high > low else 3] for value in shown)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@contextmanager
def shown(make: Callable[[Callable[[str], None]], Watch], *, quiet: bool) -> Iterator[tuple[Watch, Callable[[], None]]]:
    """A Watch and what draws it again. `quiet` shows nothing; off a terminal its lines are the view."""
    if quiet or not on_terminal():
        yield make((lambda _text: None) if quiet else say), lambda: None
        return
    from rich.console import Console
    from rich.live import Live

    encoding = (getattr(sys.stderr, "encoding", None) or "").lower()
    theme = Theme(color=True, unicode=encoding.startswith("utf"))
    console = Console(stderr=True)
    steps = ("step ", f"{_PHASES['data']}:")

    def out(text: str) -> None:
        """Steps are in the view; the rest scrolls by above it."""
        if not text.startswith(steps) or "checkpoint" in text or "held-out" in text:
            console.print(text, style="dim", highlight=False, markup=False)

    watch = make(out)
    with Live(watch.view(theme), console=console, refresh_per_second=8, transient=True) as live:
        yield watch, lambda: live.update(watch.view(theme))
