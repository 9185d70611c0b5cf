"""verify: run real steps of this run with random weights; predicted beside measured."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import click

from qlora_planner.cli import completing
from qlora_planner.cli.options import Verb, card_options, output_options, run_options
from qlora_planner.cli.progress import watching
from qlora_planner.cli.sections import SectionOption
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.typed_run import explicit_run_options
from qlora_planner.cli.values import Output, card_from, output_from, stand_in_from
from qlora_planner.errors import InputError
from qlora_planner.session.measuring.this_card import check_packages
from qlora_planner.session.measuring.verify import Verification, cards_for, check_amount, run_of_file, verify
from qlora_planner.text import screen

DEVICES = ("cuda", "cpu")
_EXIT = {"ok": 0, "out-of-memory": 1, "error": 4, "interrupted": 130}


@click.command("verify", cls=Verb)
@click.argument("model", metavar="MODEL|PLAN", shell_complete=completing.runs)
@click.option("--device", cls=SectionOption, type=click.Choice(DEVICES), default="cuda", help="Where (cuda).")
@click.option("--steps", cls=SectionOption, type=click.IntRange(1, 1000), default=3, help="Optimizer steps (3).")
@click.option("--floor", cls=SectionOption, is_flag=True, help="Find the least limit on torch that works; more runs.")
@click.option(
    "--save", cls=SectionOption, is_flag=True, help="Write the evidence into measurements/ of --profiles too."
)
@click.option(
    "--share", cls=SectionOption, is_flag=True,
    help="Write one row of evidence for a pull request, shown before; nothing in it says who or where.",
)  # fmt: skip
@click.option("--yes", cls=SectionOption, is_flag=True, help="Write the row of --share without asking.")
@click.option(
    "--as-rank",
    cls=SectionOption,
    type=click.IntRange(0, 1023),
    metavar="R",
    help="Run as one of several cards on this one.",
)
@card_options()
@run_options()
@output_options()
def command(
    model: str,
    device: str,
    steps: int,
    floor: bool,
    save: bool,
    share: bool,
    yes: bool,
    as_rank: int | None,
    **given: Any,
) -> int:
    """Build this very run with random weights, take real steps in a process of its own, and compare.

    --gpu of a smaller card makes this one behave like it; with --as-rank it runs rank R of --gpu 8xa100-80gb alone,
    under FSDP2, with nobody to send to. Exits with 1 when it runs out of memory.
    """
    output = output_from(given)
    if as_rank is not None:
        return _as_rank(model, as_rank, device, steps, given, output, alone=not (floor or save or share))
    if share and not (yes or sys.stdin.isatty()):
        raise InputError("--share: asks before it writes, and there is no terminal; add --yes")
    session = output.session
    named, run = run_of_file(model, explicit_run_options(given))
    card, _, cap_bytes = stand_in_from(given, output)
    if share and (device == "cpu" or cap_bytes is not None):
        raise InputError("--share: a row is of a whole card; leave --device cpu, --cap and a smaller --gpu out")
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
    code = _answered(verification, output)
    if share and verification.measurement.outcome == "ok" and ranks == 1:
        _share(verification, output, yes=yes)
    elif share:
        output.warn("--share: a row is of one card and of a run that ended well; nothing is written")
    return code


def _share(verification: Verification, output: Output, *, yes: bool) -> None:
    """Show the row, ask, write it. Raises InputError where it cannot be shared."""
    import json

    from qlora_planner.session.measuring.sharing import shared_folder, shared_row, write_row

    row = shared_row(output.session, verification.measurement)
    for line in json.dumps(row.to_dict(), indent=1).splitlines():
        click.echo(screen(line), err=True)
    if not yes:
        click.confirm("Write this row?", default=False, abort=True, err=True)
    path = write_row(shared_folder(output.session), row)
    output.warn(f"{path}: add it to a pull request")


def _as_rank(
    model: str, rank: int, device: str, steps: int, given: dict[str, Any], output: Output, *, alone: bool
) -> int:
    """Raises InputError for --floor, --save and --share, which are of one card, and without a number of cards."""
    from dataclasses import replace

    from qlora_planner.session.measuring.as_rank import run_as_rank, verify_as_rank
    from qlora_planner.session.measuring.this_card import this_card_as

    if not alone:
        raise InputError("--as-rank: --floor, --save and --share are of one card; leave them out")
    card = card_from(given, output, required=False)
    if card is None:
        raise InputError(f"--as-rank {rank}: of which cards? add --gpu, as --gpu 8xa100-80gb")
    named, run = run_of_file(model, explicit_run_options(given))
    run = run_as_rank(run, card, rank)
    check_packages(run)
    here = this_card_as(output.session, replace(card, count=1, nodes=1)) if device == "cuda" else None
    verification = verify_as_rank(
        output.session, named, run, card, rank, here=here, steps=steps,
        watching=partial(watching, quiet=output.quiet),
    )  # fmt: skip
    return _answered(verification, output)


def _answered(verification: Verification, output: Output) -> int:
    if output.json:
        answer_json(verification.to_dict())
    else:
        from qlora_planner.session.views.ran import VerificationAnswer

        answer(VerificationAnswer(verification=verification).render(output.theme))
    return _EXIT[verification.measurement.outcome]
