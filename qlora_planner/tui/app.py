"""The explorer: its places, its keys, its commands, and the ways out of it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

from textual.app import SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from qlora_planner.errors import InputError
from qlora_planner.text import plain
from qlora_planner.tui import commands, core
from qlora_planner.tui.control.run_control import Launches
from qlora_planner.tui.control.workers import WRITING
from qlora_planner.tui.screens.base import PLACES, Page, screen_of
from qlora_planner.tui.startup import Start
from qlora_planner.tui.state import Pin, State, write_state
from qlora_planner.tui.terminal_watch import gone
from qlora_planner.tui.widgets.ascii_filter import Plain
from qlora_planner.tui.widgets.outside import Clean
from qlora_planner.tui.widgets.themes import HIGH_CONTRAST, THEMES

_MOST_PINS = 24
INTERRUPTED = 130


class Explorer(Launches):
    """`qlora-plan tui`. Screens read its attributes and ask it for changes; nothing else has state."""

    TITLE = "qlora-plan"
    CSS_PATH = "app.tcss"
    MODES: ClassVar[dict[str, Any]] = {key: partial(screen_of, key) for key, _ in PLACES}
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(number), f"go('{key}')", f"Go to {label}", show=False)
            for number, (key, label) in enumerate(PLACES, 1)
        ),
        Binding("g", "card", "Card", tooltip="Explore another card, real or simulated"),
        Binding("c", "command", "Copy", tooltip="Show and copy the command line of what is on the screen"),
        Binding("e", "export", "Export", tooltip="Write the run as a plan, a script or another tool's config"),
        Binding("o", "open", "Open", show=False, tooltip="Open a model by name, Hub id or folder"),
        Binding("t", "next_theme", "Theme", show=False, tooltip="The next theme: dark, light, high contrast"),
        Binding("question_mark,f1", "help", "Help", key_display="?", tooltip="The keys here"),
        Binding("q", "leave", "Quit", tooltip="Leave; the place is kept for the next start"),
    ]

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self.register_theme(HIGH_CONTRAST)
        if start.state.theme in self.available_themes:
            self.theme = start.state.theme
        self._filters.append(Clean())
        if start.plain:
            self._filters.append(Plain())
        self._leaving = False

    async def on_mount(self) -> None:
        """Survey the card; look now and then whether the terminal is still there."""
        # Not DEFAULT_MODE: from Python 3.12 on textual's tasks start at once, and an Input that is mounted before there
        # is any screen fails.
        await self.switch_mode("fit")
        if self._start.note:
            self.notify(self._start.note, severity="warning")
        self.set_class(self.plain, "plain")
        self._survey(self.place)
        if self._start.model is not None:
            self._open(self._start.model, self.place, None, show=True)
        self.set_interval(1.0, self._watch_terminal)
        if not self.is_headless:
            self._watch_signals()

    # ------------------------------------------------------------------ keys

    def action_go(self, place: str) -> None:
        """Another of the places."""
        self.go(place)

    def action_card(self) -> None:
        """Pick a card."""
        if not self.under_dialog:
            from qlora_planner.tui.screens.dialogs import CardScreen

            self.push_screen(CardScreen(core.card_names(self.profiles)), self._named(self.use_card))

    def action_open(self) -> None:
        """Open a model that is not in the list."""
        if not self.under_dialog:
            from qlora_planner.tui.screens.dialogs import TextScreen

            asks = "A model: a catalogue name, a Hub id, or a folder with its config.json"
            self.push_screen(TextScreen(asks, "", hint="./my-model"), self._named(self.open_model))

    def action_ask_tokenizer(self) -> None:
        """Name the tokenizer that counts the dataset."""
        if self.data_asked is None:
            self.notify("no dataset yet: d names one")
        self.ask_tokenizer()

    def _named(self, use: Callable[[str], object]) -> Callable[[str | None], None]:
        """`use` for a dialog's result; a dialog that was closed changes nothing."""
        return lambda text: None if text is None else (use(text), None)[1]

    def action_recommend(self) -> None:
        """Look for the best run of the model on the card."""
        if self.subject is not None:
            self._recommend(self.subject, self.run_now)
            self.refresh_page()
        else:
            self.say_no_model()

    def action_fit_it(self) -> None:
        """Look for the best run that keeps the sequence length."""
        if self.subject is not None:
            self._recommend(self.subject, self.run_now, keep_length=True)
            self.refresh_page()
        else:
            self.say_no_model()

    def action_undo(self) -> None:
        """Back to the run before."""
        self.undo()

    def action_pin(self) -> None:
        """Keep the run now for comparison."""
        if self.subject is None:
            self.say_no_model()
            return
        pin = Pin(model=self.subject.model, card=self.place.asked, run=self.run_now.to_dict())
        if pin in self.pins:
            self.notify("this run is pinned already")
            return
        self.pins = [*self.pins, pin][-_MOST_PINS:]
        self._pinned_of = None
        self.notify(f"pinned; 5 compares {len(self.pins)}")

    def action_command(self) -> None:
        """Show and copy the command line of what is on the screen."""
        if not self.under_dialog:
            from qlora_planner.tui.screens.dialogs import CommandScreen

            text = plain(commands.line(self))  # what is pasted into a shell holds no control character
            self.copy_to_clipboard(text)
            self.push_screen(CommandScreen(text))

    def action_export(self) -> None:
        """Write the run of this place as a plan, a script or another tool's config."""
        if self.under_dialog:
            return
        target = commands.target(self)
        if target is None:
            self.say_no_model()
            return
        from qlora_planner.tui.screens.export import ExportScreen

        model, place, run = target

        def chosen(result: tuple[str, str, bool] | None) -> None:
            if result is not None:
                kind, path, force = result
                self._export(model, place, run, kind, path, force)

        self.push_screen(ExportScreen(model), chosen)

    def action_help(self) -> None:
        """The keys of the place or dialog, and of what has the focus."""
        from qlora_planner.tui.screens.dialogs import Dialog
        from qlora_planner.tui.screens.help import HelpScreen

        if isinstance(self.screen, Page | Dialog) and not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen.of(self.screen))

    def action_command_palette(self) -> None:
        """Every command, described."""
        if not self.under_dialog:
            from qlora_planner.tui.screens.palette import Palette

            self.push_screen(Palette(id="--command-palette"))

    def action_next_theme(self) -> None:
        """Dark, light, high contrast."""
        at = THEMES.index(self.theme) if self.theme in THEMES else -1
        self.theme = THEMES[(at + 1) % len(THEMES)]

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """What the palette offers."""
        return commands.palette(self)

    # ------------------------------------------------------------------ the ways out

    def action_leave(self) -> None:
        """Leave. A file that is being written is waited for, unless asked twice; a process that runs is asked about."""
        if WRITING in self.busy and not self._leaving:
            self._leaving = True
            self.notify(f"still {WRITING}; q again leaves without it")
        elif self.launch is not None and self.launch.running:
            self.ask_about_leaving()
        else:
            self.leave()

    async def action_quit(self) -> None:
        """The framework's own way out keeps the place too."""
        self.action_leave()

    def leave(self, code: int = 0) -> None:
        """Keep the place and end."""
        self.save_state()
        self._left = True  # a survey under way ends at its next row
        self.exit(return_code=code)

    def _watch_terminal(self) -> None:
        """A terminal that is gone has nobody who could press q."""
        if not self.is_headless and not self._left and gone():
            self._vanished()

    def _watch_signals(self) -> None:
        import asyncio

        for name in ("SIGHUP", "SIGTERM"):
            if hasattr(signal, name):
                asyncio.get_running_loop().add_signal_handler(getattr(signal, name), self._vanished)

    def _vanished(self) -> None:
        """Keep the place, stop what was started, and end though nothing can be written any more."""
        import os
        import threading

        self._left = True
        self.save_state()
        if self.launch is not None:
            self.launch.abandon()
        ending = threading.Timer(2.0, os._exit, (INTERRUPTED,))
        ending.daemon = True
        ending.start()
        self.exit(return_code=INTERRUPTED)

    def save_state(self) -> None:
        """Keep where we are."""
        from dataclasses import asdict

        subject = self.subject
        state = State(
            theme=self.theme, sort=self.sort, group=self.group,
            card=None if self.place.note else self.place.asked,
            model=None if subject is None else subject.model,
            run=None if subject is None else self.run_now.to_dict(), pins=tuple(self.pins),
            data=None if self.data_asked is None else asdict(self.data_asked),
        )  # fmt: skip
        try:
            write_state(self._start.state_path, state)
        except InputError as error:
            self.unkept = core.fault_words(error)
