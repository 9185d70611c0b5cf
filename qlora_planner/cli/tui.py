"""tui: the explorer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from qlora_planner.cli.options import CardOption, OutputOption, Verb
from qlora_planner.cli.streams import say
from qlora_planner.cli.values import Card, output_from
from qlora_planner.errors import MissingError

if TYPE_CHECKING:
    from qlora_planner.planner.survey import SurveyRow
    from qlora_planner.tui.core import Place

# How long a worker that plays a run may hold the interpreter before a key is looked at; Python's own is 5 ms.
_SWITCH_S = 0.001


@click.command("tui", cls=Verb)
@click.option("--gpu", cls=CardOption, metavar="GPU", help="24GB, 24564MiB, a name such as rtx-4090, or local.")
@click.option("--no-color", cls=OutputOption, is_flag=True, help="Without colours, as with NO_COLOR.")
@click.option("--profiles", cls=OutputOption, metavar="DIR", help="A folder with models/ or gpus/ to look in first.")
def command(**given: Any) -> int:
    """The explorer: what fits, one run and its knobs, its frontier and prices, runs side by side.

    Needs a terminal. Without --gpu it takes the card in this machine, else the one it was left with.
    """
    if not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout)):
        raise MissingError("tui: stdin and stdout must be a terminal; `qlora-plan --gpu 24GB` answers without one")
    if given["gpu"] is not None:
        from qlora_planner.tui.core import place_of

        place_of(given["gpu"], given["profiles"])  # a card that means nothing is said before the screen is taken
    if given["no_color"]:
        os.environ["NO_COLOR"] = "1"
    sys.setswitchinterval(_SWITCH_S)
    explorer = make_explorer(given)
    explorer.run()
    if explorer.unkept is not None:
        say(f"{explorer.unkept}; the next start does not know where you were")
    return explorer.return_code or 0


def make_explorer(given: dict[str, Any]) -> Any:
    """The app, with the survey that `qlora-plan --gpu` shows."""
    from qlora_planner.tui.app import Explorer, Start
    from qlora_planner.tui.state import state_path

    output = replace(output_from(given), quiet=True)

    def rows(place: Place) -> Iterator[SurveyRow]:
        from qlora_planner.cli.survey import stream_rows
        from qlora_planner.run import RunConfig

        card = Card(
            gpu=place.gpu, reserve_bytes=place.reserve_bytes, cap_bytes=place.cap_bytes, asked=place.asked
        )  # fmt: skip
        return stream_rows(card, RunConfig(), output)

    return Explorer(Start(survey=rows, card=given["gpu"], profiles=given["profiles"], state_path=state_path()))


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream is not None and stream.isatty())
    except ValueError:  # closed
        return False
