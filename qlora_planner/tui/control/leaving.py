"""The ways out: a key, a signal, a terminal that is gone. Each keeps the place for the next start."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from qlora_planner.errors import InputError
from qlora_planner.tui import core
from qlora_planner.tui.control.child_process import Launch
from qlora_planner.tui.control.requests import WRITING
from qlora_planner.tui.saved_state import write_state
from qlora_planner.tui.startup import Start
from qlora_planner.tui.terminal_watch import gone

if TYPE_CHECKING:
    from qlora_planner.tui.app import Explorer
    from qlora_planner.tui.control.tasks import Tasks

INTERRUPTED = 130
# A step and the checkpoint after it are waited for so long when one leaves.
_SAVING_S = 120.0


class Leaving:
    """Ends the app. `unkept` is why the place could not be kept."""

    def __init__(self, app: Explorer, start: Start) -> None:
        self._app, self._state_path = app, start.state_path
        self.unkept: str | None = None
        self._warned = False

    def ask(self) -> None:
        """Leave. A file that is being written is waited for, unless asked twice; a process that runs is asked about."""
        app, launch = self._app, self._app.launches.running
        if WRITING in app.tasks.busy and not self._warned:
            self._warned = True
            app.notify(f"still {WRITING}; q again leaves without it")
        elif launch is not None:
            self._ask_about(launch)
        else:
            self.leave()

    def leave(self) -> None:
        """Keep the place and end."""
        self._keep_place()
        self._app.tasks.ended = True  # a survey under way ends at its next row
        self._app.exit(return_code=0)

    def _ask_about(self, launch: Launch) -> None:
        """Something runs: stay, or stop it and leave."""
        if self._app.under_dialog:
            return
        from qlora_planner.tui.screens.dialogs import ChoiceScreen

        def chosen(choice: str | None) -> None:
            if choice == "leave":
                self._app.notify("stopping, then leaving")
                self._app.tasks.begin("end", self._end_and_leave, launch)

        resumable = ": a checkpoint is kept, and --resume goes on" if launch.verb == "train" else ""
        choices = (("stay", "Stay here"), ("leave", f"Stop it safely, then leave{resumable}"))
        self._app.push_screen(ChoiceScreen(f"{launch.words} is still running", choices), chosen)

    def _end_and_leave(self, _tasks: Tasks, launch: Launch) -> None:
        launch.end(_SAVING_S)
        self._app.call_from_thread(self.leave)

    # ------------------------------------------------------------------ without a key

    def watch(self) -> None:
        """Look now and then whether the terminal is still there, and hear signals; headless there is neither."""
        if self._app.is_headless:
            return
        import asyncio

        self._app.set_interval(1.0, self._watch_terminal)
        for name in ("SIGHUP", "SIGTERM"):
            if hasattr(signal, name):
                asyncio.get_running_loop().add_signal_handler(getattr(signal, name), self._vanished)

    def _watch_terminal(self) -> None:
        """A terminal that is gone has nobody who could press q."""
        if not self._app.tasks.ended and gone():
            self._vanished()

    def _vanished(self) -> None:
        """Keep the place, stop what was started, and end though nothing can be written any more."""
        import os
        import threading

        self._app.tasks.ended = True
        self._keep_place()
        if self._app.launches.current is not None:
            self._app.launches.current.abandon()
        ending = threading.Timer(2.0, os._exit, (INTERRUPTED,))
        ending.daemon = True
        ending.start()
        self._app.exit(return_code=INTERRUPTED)

    def _keep_place(self) -> None:
        try:
            write_state(self._state_path, self._app.state.saved(self._app.theme))
        except InputError as error:
            self.unkept = core.fault_words(error)
