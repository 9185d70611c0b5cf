"""What is heard of a training run while it runs: worded, and kept in metrics.jsonl and log.txt."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import MissingError, RunError
from qlora_planner.report.comparison import beside_the_trainer
from qlora_planner.text import plain
from qlora_planner.train.figures import main_figure, words_of
from qlora_planner.units import format_gib

if TYPE_CHECKING:
    from qlora_planner.measure.children import Progress
    from qlora_planner.runs.directory import RunDirectory
    from qlora_planner.runs.record import Metrics
    from qlora_planner.runs.supervise import Attempt

READING = "reading the data"
_PHASES = {
    "data": READING,
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
_FIRST_STEPS, _STEP_S = 10, 1.0
_LATELY, _CARD_S = 20, 2.0


class Watch:
    """Everything that was heard of a run: keeps it, warns once when the peak passes the plan, words it."""

    def __init__(
        self,
        what: str,
        *,
        metrics: Metrics,
        folder: RunDirectory,
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
        self.rewards: list[float] = []  # margins of pairs, or rewards of completions
        self.last: Mapping[str, Any] = {}
        self.used_bytes: int | None = None
        self.peak_bytes: int | None = None
        self._of_ranks: dict[int, int] = {}  # what each holds now, of several
        self.temperature: str = ""
        self._times: list[float] = []
        self._warned = False
        self._looked = self._said_step = 0.0

    def hear(self, event: Progress) -> None:
        """Take one event in."""
        fields = event.facts
        if event.event == "memory":
            self._memory(fields)
        elif event.event == "phase":
            self._entered(str(fields.get("phase")))
        elif event.event == "remark":
            self.line(str(fields["message"]))
        elif event.event == "note":
            self.note(str(fields["message"]))
        elif event.event == "data":
            done = fields["done_bytes"] / fields["size_bytes"] if fields["size_bytes"] else 1.0
            self.phase = f"{READING}: {done:.0%}, {fields['rows']:,} rows"
            self.line(self.phase)
        elif event.event == "rehearsed":
            self.line(
                f"the longest batch works: {fields['rows']} x {fields['longest']:,} of {fields['seq_len']:,} tokens,"
                f" loss {fields['loss']:.3f}{self._words_of_memory(fields)}"
            )
            self._keep("rehearsed", fields)
        elif event.event == "begin":
            self.step, self.of = int(fields["step"]), int(fields["of"])
        elif event.event == "step":
            self._stepped(fields)
        elif event.event == "evaluation":
            self.line(f"step {fields['step']}: held-out loss {_figure(fields['eval_loss'])}")
            self._keep("evaluation", fields)
        elif event.event == "checkpoint":
            self.line(f"step {fields['step']}: checkpoint kept")
            self._keep("checkpoint", {"step": fields["step"]})
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
            fields = {"phase": self._stage, "device_bytes": self._stage_peak, "predicted_bytes": self.planned_bytes()}
            self._keep("phase", fields)
        self._stage_peak = None

    @property
    def in_phase(self) -> bool:
        """Whether the prediction is that of the phase that runs, and not the peak of all."""
        return self._stage in _PREDICTED

    def planned_bytes(self) -> int | None:
        """What the plan says for the phase that runs; None where there is no plan, or it says nothing."""
        if self.predicted is None:
            return None
        name, beside = _PREDICTED.get(self._stage), beside_the_trainer(self.predicted)
        if name is None:
            peak: int = self.predicted["peak"]["device_bytes"]
            return peak + beside
        phases = self.predicted.get("phases") or ()
        planned: int | None = next((row["device_bytes"] for row in phases if row["name"] == name), None)
        return None if planned is None else planned + (beside if name == "save" else 0)  # vLLM comes with the trainer

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
            # Lines, and no notes: the summary has them among its attempts.
            self.line(attempt.says)
            start = "from the beginning" if attempt.checkpoint is None else f"from {attempt.checkpoint}"
            self.line(f"going on {start} with {attempt.rung}")

    def note(self, text: str) -> None:
        """Something to know: shown, logged, and kept for the summary."""
        if text not in self.notes:
            self.notes.append(text)
        self.line(text)

    def line(self, text: str) -> None:
        """One plain line, on stderr and in log.txt."""
        text = plain(text)
        self._out(text)
        try:
            with self._folder.log.open("a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        except OSError as error:
            self._cannot_keep(f"{self._folder.log} cannot be written: {error.strerror or error}")

    def _keep(self, kind: str, fields: Mapping[str, Any]) -> None:
        try:
            self._metrics.add(kind, fields)
        except RunError as error:
            self._cannot_keep(str(error))

    def _cannot_keep(self, text: str) -> None:
        """Said once: a full disk ends a run when a checkpoint cannot be saved, not when a line cannot."""
        if text not in self.notes:
            self.notes.append(text)
            self._out(text)

    def _stepped(self, fields: Mapping[str, Any]) -> None:
        self.step, self.of, self.last = int(fields["step"]), int(fields["of"]), fields
        if fields.get("loss") is not None:
            self.losses.append(float(fields["loss"]))
        if (figure := main_figure(fields)) is not None:
            self.rewards.append(float(fields[figure]))
        if fields.get("step_s") is not None:
            self._times = [*self._times, float(fields["step_s"])][-_LATELY:]
        memory = {"process_bytes": self.used_bytes} if self.used_bytes is not None else {}
        self._keep("step", {**fields, **memory})
        now = time.monotonic()
        # metrics.jsonl has every step; a run of short ones would bury everything else that is said.
        if self.step <= _FIRST_STEPS or self.step == self.of or now - self._said_step >= _STEP_S:
            self._said_step = now
            self.line(self.words())

    def _memory(self, fields: Mapping[str, Any]) -> None:
        used, rank = fields.get("process_bytes"), fields.get("rank")
        now = fields.get("device_bytes") if used is None else used
        if now is not None and rank is not None:
            self._of_ranks[rank] = now
            now = max(self._of_ranks.values())  # the rank that holds most is the one that runs out
        self.used_bytes = now
        if self.used_bytes is None:
            return
        self.peak_bytes = max(self.peak_bytes or 0, self.used_bytes)
        if used is not None:
            self._stage_peak = max(self._stage_peak or 0, used)
        # A whole card's figure, which stands in while a process has none yet, has others in it.
        high = None if self.predicted is None else self.predicted["peak"]["high_bytes"]
        if high is not None and used is not None and used > high and not self._warned:
            self._warned = True
            whose = "" if rank is None else f" of rank {rank}"
            self.note(
                f"the peak{whose} of {format_gib(used)} is above what was planned at the most, {format_gib(high)}"
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
        readings = [None if card.temperature_c is None else f"{card.temperature_c} °C",
                 None if card.power_w is None else f"{card.power_w:.0f} W"]  # fmt: skip
        self.temperature = ", ".join(reading for reading in readings if reading)

    @property
    def left_s(self) -> float | None:
        """Seconds until the last step, by the steps of late."""
        if not self._times or not self.of:
            return None
        return (self.of - self.step) * sum(self._times) / len(self._times)

    def words(self) -> str:
        """The last step in one line."""
        latest = self.last
        parts = [f"step {self.step}/{self.of}: loss {_figure(latest.get('loss'))}"]
        if rewards := words_of(latest):
            parts.append(rewards)
        if latest.get("learning_rate") is not None:
            parts.append(f"lr {latest['learning_rate']:.2e}")
        if latest.get("tokens_per_s") is not None:
            parts.append(f"{latest['tokens_per_s']:,.0f} tokens/s")
        if self.used_bytes is not None:
            parts.append(f"{format_gib(self.used_bytes)}")
        if self.temperature:
            parts.append(self.temperature)
        if self.left_s is not None:
            parts.append(f"{duration(self.left_s)} left")
        return ", ".join(parts)

    def _words_of_memory(self, fields: Mapping[str, Any]) -> str:
        if fields.get("allocated_peak_bytes") is None:
            return ""
        return f", {format_gib(fields['allocated_peak_bytes'])} allocated at the peak"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
