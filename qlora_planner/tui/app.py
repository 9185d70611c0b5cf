"""The explorer: its places, its keys, its commands, and the objects that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from qlora_planner.text import plain, short
from qlora_planner.tui import commands, core
from qlora_planner.tui.control import messages
from qlora_planner.tui.control.controller import Controller
from qlora_planner.tui.control.figures import CARDS_HERE, SURVEY
from qlora_planner.tui.control.launches import Launches
from qlora_planner.tui.control.leaving import Leaving
from qlora_planner.tui.control.tasks import Tasks
from qlora_planner.tui.screens.base import PLACES, Page, screen_of
from qlora_planner.tui.startup import Start
from qlora_planner.tui.state import ExplorerState
from qlora_planner.tui.user_config import named
from qlora_planner.tui.widgets.ascii_filter import Plain
from qlora_planner.tui.widgets.outside import Clean
from qlora_planner.tui.widgets.themes import HIGH_CONTRAST, THEMES

_OFFERED_S = 12.0
_READ_S = 2.0  # between two looks at the cards of this machine


class Explorer(App[None]):
    """`qlora-plan tui`: holds what is explored (`state`), background work (`tasks`), child processes (`launches`), what
    changes them (`controller`) and the ways out (`leaving`); its own are the places and the keys."""

    TITLE = "qlora-plan"
    CSS_PATH = "app.tcss"
    MODES: ClassVar[dict[str, Any]] = {key: partial(screen_of, key) for key, _ in PLACES}
    BINDINGS: ClassVar[list[BindingType]] = named([
        *(
            Binding(str(number), f"go('{key}')", f"Go to {label}", show=False)
            for number, (key, label) in enumerate(PLACES, 1)
        ),
        Binding("g", "card", "Card", tooltip="Explore another card, real or simulated"),
        Binding("c", "command", "Copy", tooltip="Show and copy the command line of what is on the screen"),
        Binding("e", "export", "Export", tooltip="Write the run as a plan, a script or another tool's config"),
        Binding("o", "open", "Open", show=False, tooltip="Open a model by name, Hub id or folder"),
        Binding("t", "next_theme", "Theme", show=False, tooltip="The next theme: dark, light, high contrast"),
        Binding("i", "tour", "Tour", show=False, tooltip="A tour of the places, one minute"),
        Binding("question_mark,f1", "help", "Help", key_display="?", tooltip="The keys here"),
        Binding("q", "leave", "Quit", tooltip="Leave; the place is kept for the next start"),
    ])  # fmt: skip

    def __init__(self, start: Start) -> None:
        super().__init__()
        self._start = start
        self.keys = start.config.keys  # the user's own, by names of actions
        self.plain = start.plain  # whether the terminal shows ASCII alone
        self.state = ExplorerState(start)
        self.tasks = Tasks(self, self.state, start)
        self.launches = Launches(self, self.state, self.tasks)
        self.controller = Controller(self, self.state, self.tasks, start)
        self.leaving = Leaving(self, start)
        self.register_theme(HIGH_CONTRAST)
        theme = start.config.theme or start.saved.theme
        if theme in self.available_themes:
            self.theme = theme
        self.set_keymap(dict(start.config.keys))
        self._filters.append(Clean())
        if start.plain:
            self._filters.append(Plain())

    async def on_mount(self) -> None:
        """Survey the card; look now and then whether the terminal is still there."""
        # Not DEFAULT_MODE: from Python 3.12 on textual's tasks start at once, and an Input that is mounted before there
        # is any screen fails.
        await self.switch_mode("fit")
        if self._start.note:
            self.notify(self._start.note, severity="warning")
        self.set_class(self.plain, "plain")
        self.tasks.want(SURVEY)
        if self._start.model is not None:
            self.controller.read_model(self._start.model, None, show=True)
        self.leaving.watch()
        self.tasks.want(CARDS_HERE)
        self.set_interval(_READ_S, self._read_cards)
        seen = self._start.tour_path
        if self._start.tour:
            self.call_after_refresh(self.action_tour)
        elif seen is not None and not seen.exists():
            self.notify("New here? i shows you around in a minute.", timeout=_OFFERED_S)

    def _read_cards(self) -> None:
        """What the cards of this machine hold now, where there was one at the first look."""
        if self.state.cards_here:
            self.state.tick += 1
            self.tasks.want(CARDS_HERE)

    # ------------------------------------------------------------------ the place that is shown

    def notify(self, message: str, **more: Any) -> None:
        """A word over the screen. Most of them name something from outside: none is markup, all are one line."""
        super().notify(short(message), **{**more, "markup": False})

    @property
    def page(self) -> Page | None:
        """The place that is shown, under whatever dialog."""
        return next((screen for screen in reversed(self.screen_stack) if isinstance(screen, Page)), None)

    @property
    def under_dialog(self) -> bool:
        """Whether a dialog is open."""
        return not isinstance(self.screen, Page)

    def refresh_page(self) -> None:
        """Paint the current place."""
        if self.page is not None:
            self.page.repaint()

    def go(self, name: str) -> None:
        """Another of the places."""
        if self.current_mode != name and not self.under_dialog:
            self.switch_mode(name)

    # ------------------------------------------------------------------ what tasks tell

    def on_answered(self, message: messages.Answered) -> None:
        """A figure."""
        self.controller.answered(message)

    def on_opened(self, message: messages.Opened) -> None:
        """A model that was asked for."""
        self.controller.opened(message)

    def on_planned(self, message: messages.Planned) -> None:
        """A recommended run that was asked for."""
        self.controller.planned(message)

    def on_told(self, message: messages.Told) -> None:
        """A word for the reader."""
        self.notify(message.text, severity=message.severity)
        self.refresh_page()

    def on_changed_work(self, _message: messages.ChangedWork) -> None:
        """What is worked on, and what a launched process tells, is said on the screen."""
        self.refresh_page()

    # ------------------------------------------------------------------ keys

    def action_go(self, name: str) -> None:
        """Another of the places."""
        self.go(name)

    def action_card(self) -> None:
        """Pick a card."""
        if not self.under_dialog:
            from qlora_planner.tui.screens.dialogs import CardScreen

            names = core.card_names(self.state.profiles)
            self.push_screen(CardScreen(names), self._named(self.controller.use_card))

    def action_open(self) -> None:
        """Open a model that is not in the list."""
        if not self.under_dialog:
            from qlora_planner.tui.screens.dialogs import TextScreen

            asks = "A model: a catalogue name, a Hub id, or a folder with its config.json"
            self.push_screen(TextScreen(asks, "", hint="./my-model"), self._named(self.controller.open_model))

    def action_ask_tokenizer(self) -> None:
        """Name the tokenizer that counts the dataset."""
        if self.state.data_source is None:
            self.notify("no dataset yet: d names one")
        self.controller.ask_tokenizer()

    def _named(self, use: Callable[[str], object]) -> Callable[[str | None], None]:
        """`use` for a dialog's result; a dialog that was closed changes nothing."""
        return lambda text: None if text is None else (use(text), None)[1]

    def action_recommend(self) -> None:
        """Look for the best run of the model on the card."""
        self.controller.recommend(keep_length=False)

    def action_fit_it(self) -> None:
        """Look for the best run that keeps the sequence length."""
        self.controller.recommend(keep_length=True)

    def action_undo(self) -> None:
        """Back to the run before."""
        self.controller.undo()

    def action_pin(self) -> None:
        """Keep the run now for comparison."""
        self.controller.pin()

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
            self.controller.say_no_model()
            return
        from qlora_planner.tui.screens.export import ExportScreen

        def chosen(result: tuple[str, str, bool] | None) -> None:
            if result is not None:
                kind, path, force = result
                self.controller.export(target, kind, path, force=force)

        self.push_screen(ExportScreen(target[0]), chosen)

    def action_help(self) -> None:
        """The keys of the place or dialog, and of what has the focus."""
        from qlora_planner.tui.screens.dialogs import Dialog
        from qlora_planner.tui.screens.help import HelpScreen

        if isinstance(self.screen, Page | Dialog) and not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen.of(self.screen))

    def action_tour(self) -> None:
        """Show what each place is for; from then on it is not offered."""
        if not self.under_dialog:
            from qlora_planner.tui.screens.tour import remember, show_tour

            if self._start.tour_path is not None:
                remember(self._start.tour_path)
            show_tour(self)

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

    def action_leave(self) -> None:
        """Leave, at once or after a question."""
        self.leaving.ask()

    async def action_quit(self) -> None:
        """The framework's own way out keeps the place too."""
        self.action_leave()
