"""verify: run real steps of this run with random weights; predicted beside measured."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from qlora_planner.cli.options import (
    SectionOption,
    Verb,
    card_options,
    explicit_run_options,
    output_options,
    run_options,
)
from qlora_planner.cli.progress import watching
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.values import output_from, stand_in_from
from qlora_planner.errors import InputError
from qlora_planner.session.measuring.this_card import check_packages
from qlora_planner.session.measuring.verify import cards_for, check_amount, run_of_file, verify

DEVICES = ("cuda", "cpu")
_EXIT = {"ok": 0, "out-of-memory": 1, "error": 4, "interrupted": 130}


@click.command("verify", cls=Verb)
@click.argument("model", metavar="MODEL|PLAN")
@click.option("--device", cls=SectionOption, type=click.Choice(DEVICES), default="cuda", help="Where (cuda).")
@click.option("--steps", cls=SectionOption, type=click.IntRange(1, 1000), default=3, help="Optimizer steps (3).")
@click.option("--floor", cls=SectionOption, is_flag=True, help="Find the least limit on torch that works; more runs.")
@click.option(
    "--save", cls=SectionOption, is_flag=True, help="Write the evidence into measurements/ of --profiles too."
)
@card_options()
@run_options()
@output_options()
def command(model: str, device: str, steps: int, floor: bool, save: bool, **given: Any) -> int:
    """Build this very run with random weights, take real steps in a process of its own, and compare.

    --gpu of a smaller card makes this one behave like it. Exits with 1 when it runs out of memory.
    """
    output = output_from(given)
    session = output.session
    named, run = run_of_file(model, explicit_run_options(given))
    card, _, cap_bytes = stand_in_from(given, output)
    if device == "cpu" and (floor or given.get("cap") or (card is not None and card.count == 1)):
        raise InputError("--device cpu: --gpu, --cap and --floor need a card; leave them out")
    check_amount(run, steps)
    check_packages(run)
    ranks, here = cards_for(session, model, card, cap_bytes=cap_bytes, device=device)
    if floor and ranks > 1:
        raise InputError("--floor: is found on one card; leave it out")
    verification = verify(
        session, named, run, here=here, steps=steps, floor=floor, save=save, ranks=ranks,
        watching=partial(watching, quiet=output.quiet),
    )  # fmt: skip
    if output.json:
        answer_json(verification.to_dict())
    else:
        from qlora_planner.session.run_views import VerificationAnswer

        answer(VerificationAnswer(verification=verification).render(output.theme))
    return _EXIT[verification.measurement.outcome]
