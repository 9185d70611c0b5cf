"""Verifications and trainings of the run that is explored: begun, watched, stopped, gone on with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_planner.train.rewarding.reward_line import rewards_of
from qlora_planner.tui import command_line
from qlora_planner.tui.control import messages
from qlora_planner.tui.control.child_process import Launch

if TYPE_CHECKING:
    from qlora_planner.tui.app import Explorer
    from qlora_planner.tui.control.tasks import Tasks
    from qlora_planner.tui.state import ExplorerState

_LISTEN_S = 0.2


class Launches:
    """The child process that runs or ran last, and where the next would run: `device` is cuda or cpu."""

    def __init__(self, app: Explorer, state: ExplorerState, tasks: Tasks) -> None:
        self._app, self._state, self._tasks = app, state, tasks
        self.current: Launch | None = None
        self.device = "cuda"

    @property
    def running(self) -> Launch | None:
        """The child that has not ended."""
        return self.current if self.current is not None and self.current.running else None

    def words(self, verb: str, more: Mapping[str, str] | None = None) -> list[str]:
        """The words after `qlora-plan` that start `verb` with the run now; `more` are options by their names."""
        state = self._state
        assert state.model is not None, "a launch is of a model"
        card = state.card if self.device == "cuda" else None
        given = command_line.SEARCHED if verb == "train" else ()
        run = command_line.toy_sized(state.run) if verb == "verify" and self.device == "cpu" else state.run
        words = command_line.command_words(state.model, card, run, verb, given)
        if self.device == "cpu":
            words += ["--device", "cpu"]
        for name, value in (more or {}).items():
            for each in rewards_of(value) if name == "reward" else [value] if value else []:
                words += [f"--{name}", each]
        if verb == "train":
            words.append("--yes")
            if state.data_source is not None and state.data_source.bad_rows != "refuse":
                words += ["--bad-rows", state.data_source.bad_rows]
        return words

    def begin(self, verb: str, more: Mapping[str, str] | None = None) -> None:
        """Start and watch. Nothing is started while another runs."""
        state = self._state
        if self.running is not None:
            self._app.notify("one at a time: x stops what runs")
            return
        if state.subject is None:
            self._app.controller.say_no_model()
            return
        folder = Path(more["output"]) if verb == "train" and more and more.get("output") else None
        predicted = None if state.estimate is None or self.device == "cpu" else state.estimate.to_dict()
        self.start(Launch(self.words(verb, more), predicted=predicted, folder=folder))

    def resume(self) -> None:
        """Go on with the training that was stopped."""
        before = self.current
        if before is None or before.resume_line() is None or before.folder is None:
            self._app.notify("there is no stopped training to go on with")
            return
        words = ["train", str(before.folder), "--resume", "--yes"]
        self.start(Launch(words, predicted=before.estimate, folder=before.folder))

    def answer(self) -> None:
        """Answer a few prompts of the data with the base and with what was trained."""
        before = self.current
        words = None if before is None else before.answers_words()
        if before is None or words is None:
            self._app.notify("there is no finished training to ask; b trains")
            return
        self.start(Launch(words, folder=before.folder))

    def start(self, launch: Launch) -> None:
        """Start a child and listen to it, in place of the one before."""
        if self.current is not None:
            self.current.end()
        try:
            launch.start()
        except OSError as error:
            self._app.notify(f"{launch.line} cannot be started: {error.strerror or error}", severity="error")
            return
        self.current = launch
        self._tasks.begin("launch", _follow, launch)
        self._app.refresh_page()

    def change_device(self) -> None:
        """The card, or the CPU; what has ended makes room for what could be started there."""
        self.device = "cpu" if self.device == "cuda" else "cuda"
        if self.current is not None and self.running is None:
            self.current.end()
            self.current = None

    def stop(self) -> None:
        """Ask what runs to stop."""
        launch = self.running
        if launch is None:
            self._app.notify("nothing runs")
            return
        launch.stop()
        if launch.asked_to_stop > 1:
            self._app.notify("stopping at once")
        elif launch.verb == "train":
            self._app.notify("stopping: a checkpoint is kept after this step; x again stops at once")
        else:
            self._app.notify("stopping")
        self._app.refresh_page()


def _follow(tasks: Tasks, launch: Launch) -> None:
    """Listen to a launched process until it has ended."""
    with tasks.doing(launch.words):
        while True:
            changed, running = launch.listen(), launch.running
            if changed or not running:
                tasks.post(messages.ChangedWork())
            if not running or tasks.ended:
                return
            time.sleep(_LISTEN_S)
