"""Verifications and trainings of the run that is explored: begun, stopped, asked about when one leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from textual import work

from qlora_planner.tui import command_line
from qlora_planner.tui.control.child_process import Launch
from qlora_planner.tui.control.handlers import Heard

# A step and the checkpoint after it are waited for so long when one leaves.
_SAVING_S = 120.0


class Launches(Heard):
    """What the Train place asks for."""

    def say_no_model(self) -> None:
        """Nothing is explored yet."""
        self.notify("no model yet: Enter on one in Fit (1) opens it")

    def launch_words(self, verb: str, more: Mapping[str, str] | None = None) -> list[str]:
        """The words after `qlora-plan` that start `verb` with the run now; `more` are options by their names."""
        assert self.model is not None, "a launch is of a model"
        place = self.place if self.device == "cuda" else None
        given = command_line.SEARCHED if verb == "train" else ()
        run = command_line.toy_sized(self.run_now) if verb == "verify" and self.device == "cpu" else self.run_now
        words = command_line.command_words(self.model, place, run, verb, given)
        if self.device == "cpu":
            words += ["--device", "cpu"]
        for name, value in (more or {}).items():
            if value:
                words += [f"--{name}", value]
        if verb == "train":
            words.append("--yes")
            if self.data_asked is not None and self.data_asked.bad_rows != "refuse":
                words += ["--bad-rows", self.data_asked.bad_rows]
        return words

    def begin(self, verb: str, more: Mapping[str, str] | None = None) -> None:
        """Start and watch. Nothing is started while another runs."""
        if self.launch is not None and self.launch.running:
            self.notify("one at a time: x stops what runs")
            return
        if self.subject is None:
            self.say_no_model()
            return
        folder = Path(more["output"]) if verb == "train" and more and more.get("output") else None
        predicted = None if self.estimate is None or self.device == "cpu" else self.estimate.to_dict()
        self._start_launch(Launch(self.launch_words(verb, more), predicted=predicted, folder=folder))

    def resume(self) -> None:
        """Go on with the training that was stopped."""
        before = self.launch
        if before is None or before.resume_line() is None or before.folder is None:
            self.notify("there is no stopped training to go on with")
            return
        words = ["train", str(before.folder), "--resume", "--yes"]
        self._start_launch(Launch(words, predicted=before.estimate, folder=before.folder))

    def _start_launch(self, launch: Launch) -> None:
        if self.launch is not None:
            self.launch.end()
        try:
            launch.start()
        except OSError as error:
            self.notify(f"{launch.line} cannot be started: {error.strerror or error}", severity="error")
            return
        self.launch = launch
        self._follow(launch)
        self.refresh_page()

    def forget_launch(self) -> None:
        """Back to what could be started."""
        if self.launch is not None and not self.launch.running:
            self.launch.end()
            self.launch = None

    def stop_launch(self) -> None:
        """Ask what runs to stop."""
        if self.launch is None or not self.launch.running:
            self.notify("nothing runs")
            return
        self.launch.stop()
        if self.launch.asked_to_stop > 1:
            self.notify("stopping at once")
        elif self.launch.verb == "train":
            self.notify("stopping: a checkpoint is kept after this step; x again stops at once")
        else:
            self.notify("stopping")
        self.refresh_page()

    def ask_about_leaving(self) -> None:
        """Something runs: stay, or stop it and leave."""
        if self.under_dialog:
            return
        from qlora_planner.tui.screens.dialogs import ChoiceScreen

        assert self.launch is not None
        resumable = ": a checkpoint is kept, and --resume goes on" if self.launch.verb == "train" else ""
        choices = (("stay", "Stay here"), ("leave", f"Stop it safely, then leave{resumable}"))
        self.push_screen(ChoiceScreen(f"{self.launch.words} is still running", choices), self._leaving_chosen)

    def _leaving_chosen(self, choice: str | None) -> None:
        if choice == "leave" and self.launch is not None:
            self.notify("stopping, then leaving")
            self._end_and_leave(self.launch)

    @work(thread=True, group="end")
    def _end_and_leave(self, launch: Launch) -> None:
        launch.end(_SAVING_S)
        self.call_from_thread(self.leave)

    def leave(self, code: int = 0) -> None:
        """Keep the place and end: see the explorer."""
        raise NotImplementedError
