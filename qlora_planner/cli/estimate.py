"""estimate: the memory of exactly this run."""

from __future__ import annotations

from typing import Any

import click

from qlora_planner.cli import completing
from qlora_planner.cli.exits import exit_code
from qlora_planner.cli.options import Verb, card_options, output_options, run_options
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.typed_run import explicit_run_options, run_from
from qlora_planner.cli.values import card_from, output_from
from qlora_planner.planner.knobs import in_whole_groups


@click.command("estimate", cls=Verb)
@click.argument("model", shell_complete=completing.models)
@card_options()
@run_options()
@output_options()
def command(model: str, **given: Any) -> int:
    """The memory of exactly this run: by phase, by component, and against a card if one is given.

    Exits with 1 when it does not fit or will not run.
    """
    output = output_from(given)
    run = run_from(given)
    if not {"batch_size", "grad_accum"} & explicit_run_options(given).keys():
        run = in_whole_groups(run)
    card = card_from(given, output, required=False)
    profile = output.session.model(model)
    estimate = output.session.open(profile, card).estimate(run)
    if output.json:
        answer_json(estimate.to_dict())
    else:
        from qlora_planner.report.estimate import render_estimate

        gpu, card_text = (card.gpu, card.asked) if card else (None, None)
        answer(render_estimate(estimate, gpu, output.theme, card=card_text, explain=output.explain))
    return exit_code(estimate)
