"""What the palette offers, and the command line and the run that belong to each place."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING

from textual.app import SystemCommand

from qlora_planner.spec.run import RunConfig
from qlora_planner.tui import command_line, core
from qlora_planner.tui.screens.base import PLACES

if TYPE_CHECKING:
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.tui.app import Explorer

Target = tuple[str, "PlannedCard", RunConfig]


def target(app: Explorer) -> Target | None:
    """Model, card and run of what is pointed at: the row of Fit or Compare, else the run that is explored."""
    if app.current_mode == "fit":
        from qlora_planner.tui.screens.fit import FitScreen

        model = app.page.current() if isinstance(app.page, FitScreen) else None
        row = next((row for row in app.state.rows or () if row.model_id == model), None)
        if row is not None and row.model_id != app.state.model:
            return row.model_id, app.state.card, core.start_run(row)
    if app.current_mode == "compare":
        from qlora_planner.tui.screens.compare import CompareScreen

        pin = app.page.current() if isinstance(app.page, CompareScreen) else None
        if pin is not None:
            return pin.model, core.card_of(pin.card, app.state.profiles), RunConfig(**dict(pin.run))
    return None if app.state.model is None else (app.state.model, app.state.card, app.state.run)


def line(app: Explorer) -> str:
    """The command that gives what is on the screen."""
    shown = target(app)
    if app.current_mode == "fit" or shown is None:
        from qlora_planner.catalog.gpus.several import nodes_of

        return shlex.join(["qlora-plan", *nodes_of(app.state.card.asked).words])
    model, card, run = shown
    if app.current_mode in ("prices", "frontier"):
        return shlex.join(["qlora-plan", *command_line.command_words(model, card, run, "plan", command_line.SEARCHED)])
    if app.current_mode == "data" and app.state.data_source is not None:
        source = app.state.data_source
        run = run if app.state.cut is None else run.with_(seq_len=app.state.cut)
        words = command_line.command_words(model, card, run, "plan", command_line.SEARCHED)
        words += ["--data", source.path]
        words += ["--tokenizer", source.tokenizer] if source.tokenizer else []
        words += ["--chars-per-token", f"{source.chars_per_token:g}"] if source.chars_per_token else []
        words += ["--bad-rows", source.bad_rows] if source.bad_rows != "refuse" else []
        return shlex.join(["qlora-plan", *words])
    if app.current_mode == "train":
        if app.launches.current is not None:
            return app.launches.current.line
        return shlex.join(["qlora-plan", *app.launches.words("verify")])
    return command_line.command_line(model, card, run)


def palette(app: Explorer) -> Iterable[SystemCommand]:
    """Every command, described."""
    for key, label in PLACES:
        yield SystemCommand(label, f"Go to {label}", lambda key=key: app.action_go(key))
    yield SystemCommand("Card", "Explore another card, real or simulated", app.action_card)
    yield SystemCommand("Open a model", "By catalogue name, Hub id or folder", app.action_open)
    yield SystemCommand("Recommended run", "Take the best run of this model on this card", app.action_recommend)
    yield SystemCommand("Fit it", "Take the best run that keeps this sequence length", app.action_fit_it)
    yield SystemCommand("Undo", "Back to the run before", app.action_undo)
    yield SystemCommand("Pin", "Keep this run for comparison", app.action_pin)
    yield SystemCommand("Command line", "Show and copy the command that gives these figures", app.action_command)
    yield SystemCommand("Export", "Write this run as a plan, a script or a config of another tool", app.action_export)
    yield SystemCommand("Next theme", "Dark, light, high contrast", app.action_next_theme)
    yield SystemCommand("Tour", "What each place is for, in one minute", app.action_tour)
    yield SystemCommand("Help", "The keys here", app.action_help)
    yield SystemCommand("Quit", "Leave; the place is kept", app.action_leave)
