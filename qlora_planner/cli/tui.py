"""tui: the explorer."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from qlora_planner.cli import completing
from qlora_planner.cli.blas import load_numpy
from qlora_planner.cli.options import Verb, data_options
from qlora_planner.cli.sections import CardOption, OutputOption
from qlora_planner.cli.streams import answer, say
from qlora_planner.cli.tui_survey import Surveys
from qlora_planner.errors import MissingError, PlannerError, UnprofiledError

if TYPE_CHECKING:
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.tui.saved_state import SavedState

# How long a worker that plays a run may hold the interpreter before a key is looked at; Python's own is 5 ms.
_SWITCH_S = 0.001


@click.command("tui", cls=Verb)
@click.argument("model", metavar="[MODEL]", required=False, shell_complete=completing.models)
@click.option(
    "--gpu",
    cls=CardOption,
    shell_complete=completing.cards,
    metavar="GPU",
    help="24GB, 24564MiB, a name such as rtx-4090, or local.",
)
@data_options()
@click.option("--no-color", cls=OutputOption, is_flag=True, help="Without colours, as with NO_COLOR.")
@click.option("--ascii", cls=OutputOption, is_flag=True, help="ASCII alone (where the locale is not UTF-8).")
@click.option("--profiles", cls=OutputOption, metavar="DIR", help="A folder with models/ or gpus/ to look in first.")
@click.option(
    "--serve", cls=OutputOption, type=click.IntRange(1, 65535), is_flag=False, flag_value=8000, metavar="[PORT]",
    help="Show it to a browser on this machine (8000); needs [serve].",
)  # fmt: skip
@click.option("--keys", cls=OutputOption, is_flag=True, help="List the actions with their keys, for tui.toml.")
@click.option("--tour", cls=OutputOption, is_flag=True, help="Begin with a tour of the places, one minute.")
def command(serve: int | None, keys: bool, **given: Any) -> int:
    """The explorer: what fits, one run and its knobs, frontier, prices, comparisons, the dataset, verify and train.

    Needs a terminal. MODEL is opened at once. Without --gpu it takes the card in this machine, else the one it was left
    with.
    """
    if keys:
        return _list_keys()
    if serve is not None:
        return _serve(serve, given)
    in_browser = bool(os.environ.get("TEXTUAL_DRIVER"))  # textual-serve speaks to it through pipes
    if not in_browser and not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout)):
        raise MissingError("tui: stdin and stdout must be a terminal; `qlora-plan --gpu 24GB` answers without one")
    if not in_browser and not _is_terminal(sys.stderr):  # where the framework paints
        raise MissingError("tui: stderr must be a terminal too: start it without 2> FILE")
    if given["no_color"]:
        os.environ["NO_COLOR"] = "1"
    load_numpy()
    sys.setswitchinterval(_SWITCH_S)
    surveys = Surveys(given["profiles"])
    try:
        explorer = make_explorer(given, surveys, ahead=True)
        explorer.run()
    finally:
        surveys.close()
    if explorer.leaving.unkept is not None:
        say(f"{explorer.leaving.unkept}; the next start does not know where you were")
    return explorer.return_code or 0


def _list_keys() -> int:
    from qlora_planner.tui.user_config import config_path, listed, read_config

    config, unused = read_config(config_path())
    answer(listed(config))
    say(
        unused or f'{config_path()} may hold other keys: [keys], then "train.verify" = "w"; and theme = "textual-light"'
    )
    return 0


def _serve(port: int, given: dict[str, Any]) -> int:
    """The explorer in a browser, one process a visitor, until Ctrl-C; to this machine alone.

    Raises MissingError without textual-serve.
    """
    import shlex

    from qlora_planner.installing import install_line
    from qlora_planner.isolation import python_module

    try:
        from textual_serve.server import Server
    except ImportError:
        raise MissingError(f"missing here: textual-serve; {install_line('serve')}") from None
    words = [given["model"]] if given.get("model") else []
    of_data = ("data", "tokenizer", "chars_per_token", "bad_rows") if given.get("data") else ()
    for name in ("gpu", "profiles", *of_data):
        if given.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(given[name])]
    words += [f"--{name.replace('_', '-')}" for name in ("no_color", "ascii", "tour") if given.get(name)]
    line = shlex.join([*python_module("qlora_planner"), "tui", *words])
    say(f"http://127.0.0.1:{port} until Ctrl-C")
    Server(line, host="127.0.0.1", port=port, title="qlora-planner").serve()
    return 0


def make_explorer(given: dict[str, Any], surveys: Surveys | None = None, *, ahead: bool = False) -> Any:
    """The app, with the survey that `qlora-plan --gpu` shows; `ahead` begins it before the app is loaded.

    Raises InputError and MissingError for a card or data options that mean nothing.
    """
    from qlora_planner.session.data import DataSource
    from qlora_planner.tui.saved_state import read_state, state_path
    from qlora_planner.tui.startup import Start
    from qlora_planner.tui.user_config import config_path, read_config, tour_path

    data = None
    if given.get("data") is not None:
        bad_rows = given.get("bad_rows") or "refuse"
        data = DataSource(
            path=given["data"], tokenizer=given.get("tokenizer"), chars_per_token=given.get("chars_per_token"),
            bad_rows=bad_rows,
        )  # fmt: skip
    model = given.get("model")
    if model is not None:
        _check(model, given["profiles"])
    path = state_path()
    state, note = read_state(path)
    config, unused = read_config(config_path())
    note = unused or note
    card = _card(given["gpu"], state, given["profiles"])
    surveys = surveys or Surveys(given["profiles"])
    if ahead:
        surveys.ahead(card)
    from qlora_planner.tui.app import Explorer

    start = Start(
        survey=surveys, card=card, saved=state, state_path=path, profiles=given["profiles"], data=data, note=note,
        plain=bool(given.get("ascii")) or not _is_utf8(sys.__stderr__), model=model,
        config=config, tour=bool(given.get("tour")), tour_path=tour_path(),
    )  # fmt: skip
    return Explorer(start)


def _check(model: str, profiles: str | None) -> None:
    """Raises InputError for a model that means nothing; one that is to be profiled is opened with a word about it."""
    from qlora_planner.session import load_model

    with suppress(UnprofiledError):
        load_model(model, profiles=profiles, build="never", warn=say)


def _card(text: str | None, state: SavedState, profiles: str | None) -> PlannedCard:
    """The card that was typed, else the one that it was left with, else what is found here."""
    from qlora_planner.tui.core import card_of

    if text is not None:
        return card_of(text, profiles)
    if state.card is not None:
        try:
            return card_of(state.card, profiles)
        except PlannerError:  # a card of a catalogue that is gone, or `local` on another machine
            pass
    return card_of(None, profiles)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream is not None and stream.isatty())
    except ValueError:  # closed
        return False


def _is_utf8(stream: Any) -> bool:
    encoding = (getattr(stream, "encoding", None) or "").lower()
    return encoding.replace("-", "").replace("_", "").startswith("utf8")
