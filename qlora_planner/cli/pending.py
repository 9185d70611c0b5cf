"""Verbs that are named and not built yet: one honest line, whatever was typed after them."""

from __future__ import annotations

import click

from qlora_planner.errors import MissingError


def pending_command(name: str, text: str) -> click.Command:
    """A command that takes anything and says that it is not built yet."""

    @click.command(
        name,
        help=f"{text} Not built yet.",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    @click.argument("anything", nargs=-1, type=click.UNPROCESSED, metavar="...")
    def command(anything: tuple[str, ...]) -> int:
        raise MissingError(f"{name} is not built yet; what is: plan, estimate, audit, profile, gpus, models, doctor")

    return command
