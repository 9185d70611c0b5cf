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
    from qlora_planner.tui.app import Explorer
    from qlora_planner.tui.core import Place

Target = tuple[str, "Place", RunConfig]


def target(app: Explorer) -> Target | None:
    """Model, card and run of what is pointed at: the row of Fit or Compare, else the run that is explored."""
    if app.current_mode == "fit":
        from qlora_planner.tui.screens.fit import FitScreen

        model = app.page.current() if isinstance(app.page, FitScreen) else None
        row = next((one for one in app.rows or () if one.model_id == model), None)
        if row is not None and row.model_id != app.model:
            return row.model_id, app.place, core.start_run(row)
    if app.current_mode == "compare":
        from qlora_planner.tui.screens.compare import CompareScreen

        pin = app.page.current() if isinstance(app.page, CompareScreen) else None
        if pin is not None:
            return pin.model, core.place_of(pin.card, app.profiles), RunConfig(**dict(pin.run))
    return None if app.model is None else (app.model, app.place, app.run_now)


def line(app: Explorer) -> str:
    """The command that gives what is on the screen."""
    found = target(app)
    if app.current_mode == "fit" or found is None:
        return shlex.join(["qlora-plan", "--gpu", app.place.asked])
    model, place, run = found
    if app.current_mode in ("prices", "frontier"):
        return shlex.join(["qlora-plan", *command_line.command_words(model, place, run, "plan", command_line.SEARCHED)])
    if app.current_mode == "data" and app.data_asked is not None:
        asked = app.data_asked
        run = run if app.cut is None else run.with_(seq_len=app.cut)
        words = command_line.command_words(model, place, run, "plan", command_line.SEARCHED)
        words += ["--data", asked.path]
        words += ["--tokenizer", asked.tokenizer] if asked.tokenizer else []
        words += ["--chars-per-token", f"{asked.chars_per_token:g}"] if asked.chars_per_token else []
        words += ["--bad-rows", asked.bad_rows] if asked.bad_rows != "refuse" else []
        return shlex.join(["qlora-plan", *words])
    if app.current_mode == "train":
        if app.launch is not None:
            return app.launch.line
        return shlex.join(["qlora-plan", *app.launch_words("verify")])
    return command_line.command_line(model, place, run)


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
    yield SystemCommand("Help", "The keys here", app.action_help)
    yield SystemCommand("Quit", "Leave; the place is kept", app.action_leave)
