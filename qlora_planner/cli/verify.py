"""verify: run real steps of this run with random weights; predicted beside measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qlora_planner.cli import events
from qlora_planner.cli.loading import profile_for
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
from qlora_planner.cli.values import Output, card_asked, output_from
from qlora_planner.errors import InputError
from qlora_planner.session import Session
from qlora_planner.session.this_card import ThisCard, check_packages, check_room, this_card_as
from qlora_planner.session.verify import check_amount, keep, least_limit, run_of_file, specification

if TYPE_CHECKING:
    from qlora_planner.evidence import Measurement
    from qlora_planner.measure.floor import Floor
    from qlora_planner.measure.spec import ChildSpec

SCHEMA = "qlora-plan/verification/1"
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
    if device == "cpu" and (floor or given.get("gpu") or given.get("cap")):
        raise InputError("--device cpu: --gpu, --cap and --floor need a card; leave them out")
    session = Session(output.profiles, tell=output.warn)
    named, run = run_of_file(model, explicit_run_options(given))
    check_amount(run, steps)
    check_packages(run)
    profile = profile_for(named, output)
    here = None if device == "cpu" else this_card_as(session, *card_asked(given))
    spec, predicted = specification(session, named, profile, run, here, device=device, steps=steps)
    if here is not None:
        check_room(here, predicted, output.warn)
    measured = _measure(spec, here, output)
    _tell_compared(measured)
    least = least_limit(spec, measured, predicted, output.warn) if floor and measured.outcome == "ok" else None
    tried = () if least is None else least.tries
    kept = keep(session, measured, save=save)
    for _, attempt in tried:
        keep(session, attempt, save=save)
    _show(measured, least, kept, output)
    return _EXIT[measured.outcome]


def _measure(spec: ChildSpec, here: ThisCard | None, output: Output) -> Measurement:
    from qlora_planner.measure.verify import Progress, verify

    whole = None if here is None else here.gpu.memory_bytes
    events.tell("predicted", {"estimate": spec.predicted})
    with watching(spec.model_id, whole, quiet=output.quiet) as tell:

        def heard(progress: Progress) -> None:
            events.pass_on(progress)
            tell(progress)

        return verify(spec, tell=heard)


def _tell_compared(measured: Measurement) -> None:
    """Predicted beside measured, for whoever watches from outside."""
    from qlora_planner.report.comparison import to_document

    events.tell("compared", to_document(measured))


def _show(measured: Measurement, floor: Floor | None, kept: str | None, output: Output) -> None:
    works = None if floor is None else floor.works_bytes
    if output.json:
        from qlora_planner.report.comparison import to_document

        answer_json(
            {
                "schema": SCHEMA,
                "measurement": measured.to_dict(),
                "comparison": to_document(measured),
                "floor": None if floor is None else {"works_bytes": works, "fails_bytes": floor.fails_bytes},
            }
        )
        return
    from qlora_planner.report.verify import render_verification

    answer(render_verification(measured, output.theme, floor_bytes=works, kept=kept))
