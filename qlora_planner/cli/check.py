"""check: whether a plan file, or a config of axolotl, LLaMA-Factory or TRL, fits a card, and what would make it fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qlora_planner.cli import completing
from qlora_planner.cli.exits import exit_code
from qlora_planner.cli.options import Verb, card_options, output_options
from qlora_planner.cli.sections import SectionOption
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.values import Output, card_from, output_from, parse_stack

if TYPE_CHECKING:
    from qlora_planner.exchange.parsed_config import Reading
    from qlora_planner.session.cards import PlannedCard

KINDS = ("plan", "axolotl", "llama-factory", "trl")


@click.command("check", cls=Verb)
@click.argument("file", shell_complete=completing.files)
@click.option("--format", "kind", cls=SectionOption, type=click.Choice(KINDS), help="What FILE is (its keys tell).")
@click.option("--model", cls=SectionOption, metavar="MODEL", help="Take this model in place of the file's.")
@click.option(
    "--accelerate-config",
    "launch",
    cls=SectionOption,
    metavar="YAML",
    help="How accelerate launches FILE on several cards.",
)
@click.option(
    "--stack",
    cls=SectionOption,
    multiple=True,
    metavar="PACKAGE=VERSION,..",
    help="Read FILE as this release does, as axolotl=0.18; and plan for versions, as trl=1.13.",
)
@card_options()
@output_options()
def command(
    file: str, kind: str | None, model: str | None, launch: str | None, stack: tuple[str, ...], **given: Any
) -> int:
    """Whether FILE, a plan or a config of axolotl, LLaMA-Factory or TRL, fits; and the smallest change that makes it.

    Without --gpu a plan is checked against its own card. Exits with 1 when it does not fit or will not run, with 5 when
    the file asks for something that is not modelled and could change that.
    """
    output = output_from(given)
    from qlora_planner.exchange.configs import TOOLS, read_config

    reading = read_config(file, kind, parse_stack(stack, TOOLS))
    if launch is not None:
        from qlora_planner.exchange.several_cards.on_cards import launched

        reading = launched(reading, launch)
    card = _card(reading, given, output)
    opened = output.session.on(card).open(model or reading.model_id)
    from qlora_planner.session.check import check_reading
    from qlora_planner.session.views.planned import CheckAnswer

    checked = CheckAnswer(check=check_reading(file, reading, opened), gpu=card.gpu)
    if output.json:
        answer_json(checked.to_dict())
    else:
        answer(checked.render(output.theme, explain=output.explain))
    return exit_code(checked.estimate)


def _card(reading: Reading, given: dict[str, Any], output: Output) -> PlannedCard:
    """--gpu, else the card that a plan was made for, else the one in this machine."""
    if given.get("gpu") is None and reading.gpu is not None:
        from qlora_planner.session.cards import card_of_plan, network_of_plan

        gpu, nodes = card_of_plan(reading.gpu)
        output.warn(f"no --gpu given: taking the plan's own card, {gpu}")
        given = {**given, "gpu": gpu, "nodes": given.get("nodes") or nodes}
        given["node_network"] = given.get("node_network") or network_of_plan(reading.gpu)
    card = card_from(given, output, required=True)
    assert card is not None
    return card
