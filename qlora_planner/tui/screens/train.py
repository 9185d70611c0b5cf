"""Train: start the verification or the training of the run now as a process of its own, and watch it."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Sparkline

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.report.parts.theme import Line
from qlora_planner.tui.control.child_process import Launch
from qlora_planner.tui.control.figures import READINESS
from qlora_planner.tui.screens.base import Page
from qlora_planner.tui.screens.launch_form import LaunchForm
from qlora_planner.tui.widgets import training
from qlora_planner.tui.widgets.moving import Scroll
from qlora_planner.tui.widgets.outside import Pane
from qlora_planner.tui.widgets.run import as_text, preview_text

_CURVES = (("memory", "GiB by NVML"), ("loss", "loss"), ("speed", "tokens/s"))


class TrainScreen(Page):
    """What is about to run, or what runs."""

    place_key = "train"
    AUTO_FOCUS = "#log-scroll"
    SAYS = (
        "Run what the explorer shows, in a process of its own: v takes three real steps with random weights and"
        " compares, b trains on your data. Predicted memory stands beside what NVML says, phase by phase."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("v", "verify", "Verify", tooltip="Three real steps of this run with random weights, compared"),
        Binding("b", "train", "Train", tooltip="Train on your data; asks where everything is first"),
        Binding("d", "device", "Device", tooltip="On the card of this machine, or on the CPU at a toy size"),
        Binding("x", "stop", "Stop", tooltip="Stop safely: a training keeps a checkpoint; again stops at once"),
        Binding("r", "resume", "Resume", tooltip="Go on with the training that was stopped"),
        Binding(
            "a", "answer", "Answers", show=False, tooltip="Base and trained model side by side, on prompts of the data"
        ),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._ended: Launch | None = None  # the launch whose answer was shown

    def body(self) -> ComposeResult:
        """Status; phases beside curves; the log."""
        yield Pane(id="status")
        with Horizontal(id="watch"):
            yield Pane(id="peaks")
            with Vertical(id="curves"):
                for key, _ in _CURVES:
                    yield Pane(id=f"{key}-label", classes="label")
                    yield Sparkline([], id=f"{key}-curve")
        with Scroll(id="log-scroll"):
            yield Pane(id="log")

    def show(self) -> None:
        """What would be run, or what runs."""
        explorer = self.explorer
        launch = explorer.launches.current
        explorer.tasks.want(READINESS)
        self.query_one("#watch").display = launch is not None
        theme = self.theme_at(self.size.width - 2)
        lines: list[Line] = []
        if launch is None:
            lines += training.before(self.state, explorer.launches, theme)
            estimate = self.state.estimate
            self.put("#log", Text("") if estimate is None else preview_text("Predicted", estimate, theme))
        else:
            lines += training.status(launch, theme)
            self._curves(launch)
            self.put("#peaks", as_text(training.peaks(launch, theme)))
            self._log(launch)
        self.put("#status", as_text(lines))

    def _curves(self, launch: Launch) -> None:
        curves = {
            "memory": [size / (1 << 30) for size in launch.used], "loss": launch.losses, "speed": launch.speeds,
        }  # fmt: skip
        for key, label in _CURVES:
            values = curves[key]
            curve, words = self.query_one(f"#{key}-curve", Sparkline), self.query_one(f"#{key}-label", Pane)
            curve.display = words.display = bool(values)
            if values:
                curve.data = values[:]  # a list that grew in place is not painted again
                now, least = (f"{v:,.0f}" if key == "speed" else f"{v:,.3f}" for v in (values[-1], min(values)))
                words.update(Text.assemble((f"{label} ", "dim"), (now, "bold"), f"  {least} least"))

    def _log(self, launch: Launch) -> None:
        scroll = self.query_one("#log-scroll", Scroll)
        at_end = scroll.max_scroll_y - scroll.scroll_y <= 1
        text = "\n".join([*launch.log, *([""] if launch.answer else []), *launch.answer.splitlines()])
        self.put("#log", Text(text, style="" if launch.answer else "dim"))
        if at_end or (self._ended is not launch and not launch.running):
            self.call_after_refresh(scroll.scroll_end, animate=False)
        self._ended = None if launch.running else launch

    def action_verify(self) -> None:
        """Three real steps."""
        if self._ready("verify"):
            self.explorer.launches.begin("verify")

    def action_train(self) -> None:
        """Ask where everything is, then train."""
        if self._ready("train"):
            explorer = self.explorer
            data = "" if self.state.data_source is None else self.state.data_source.path
            assert self.state.model is not None, "looked at by _ready"
            rewarded = trainer_named(self.state.run.trainer).generation is not None
            toy = explorer.launches.device == "cpu"
            form = LaunchForm(self.state.model, data, toy=toy, rewarded=rewarded)
            self.app.push_screen(form, self._begin)

    def _begin(self, fields: dict[str, str] | None) -> None:
        if fields is not None:
            self.explorer.launches.begin("train", fields)

    def _ready(self, verb: str) -> bool:
        explorer = self.explorer
        if self.state.subject is None:
            explorer.controller.say_no_model()
            return False
        if explorer.launches.running is not None:
            explorer.notify("one at a time: x stops what runs")
            return False
        if self.state.refusal is not None and verb == "verify":
            explorer.notify(f"this run will not work: {self.state.refusal}", severity="error")
            return False
        readiness = self.state.looked.value
        lacks = None if readiness is None else readiness.lacks(explorer.launches.device)
        if lacks is not None:
            explorer.notify(lacks, severity="error")
        return lacks is None

    def action_device(self) -> None:
        """The card, or the CPU."""
        self.explorer.launches.change_device()
        self.repaint()

    def action_stop(self) -> None:
        """Ask it to stop."""
        self.explorer.launches.stop()

    def action_answer(self) -> None:
        """Base and trained model side by side."""
        self.explorer.launches.answer()

    def action_resume(self) -> None:
        """Go on from its last checkpoint."""
        self.explorer.launches.resume()
