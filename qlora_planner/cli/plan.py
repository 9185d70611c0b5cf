"""plan: the run that is recommended for one model on one card."""

from __future__ import annotations

from typing import Any

import click

from qlora_planner.cli.loading import profile_for
from qlora_planner.cli.options import (
    SectionOption,
    Verb,
    card_options,
    data_options,
    explicit_run_options,
    output_options,
    run_from,
    run_options,
)
from qlora_planner.cli.plan_files import wanted_files, write_files
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.values import card_from, output_from
from qlora_planner.errors import MissingError

OBJECTIVES = ("throughput",)


@click.command("plan", cls=Verb)
@click.argument("model")
@click.option(
    "--objective",
    cls=SectionOption,
    type=click.Choice(OBJECTIVES),
    default="throughput",
    help="What is best (throughput).",
)
@click.option("--save", cls=SectionOption, metavar="FILE", help="Write the plan as YAML for verify, check and train.")
@click.option("--force", cls=SectionOption, is_flag=True, help="Let --save and --export write over a file.")
@click.option(
    "--export",
    "exports",
    cls=SectionOption,
    multiple=True,
    metavar="KIND[=FILE]",
    help="The run as trl, notebook, accelerate, axolotl or llama-factory: printed, or into FILE.",
)
@card_options()
@data_options()
@run_options()
@output_options()
def command(model: str, objective: str, save: str | None, force: bool, exports: tuple[str, ...], **given: Any) -> int:
    """The recommended run for MODEL on a card, its memory, and what each knob costs.

    Run options that are given are kept as far as they fit. Exits with 1 when nothing fits.
    """
    output = output_from(given)
    if given["data"] is not None:
        raise MissingError("--data is not built yet; plan with --seq-len at the length of your longest sample")
    wanted = wanted_files(save, exports, output, force=force)
    explicit = explicit_run_options(given)
    run = run_from(given) if explicit else None
    card = card_from(given, output, required=True)
    assert card is not None
    profile = profile_for(model, output)
    from qlora_planner.api import plan

    found = plan(
        profile,
        card.gpu,
        run,
        objective=objective,
        reserve_bytes=card.reserve_bytes,
        cap_bytes=card.cap_bytes,
        profiles=output.profiles,
        tell=output.warn,
    )
    printed = write_files(found, wanted, profile, data, output)
    if printed is not None:
        answer(printed)
    elif output.json:
        answer_json(found.to_dict())
    else:
        from qlora_planner.report.plan import render_plan

        answer(render_plan(found, explicit, card.asked, output.theme, explain=output.explain))
    return 1 if found.estimate.verdict in ("does-not-fit", "will-not-run") else 0
