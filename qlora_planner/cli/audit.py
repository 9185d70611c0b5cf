"""audit: what will really be 4-bit, what will not, and why."""

from __future__ import annotations

from typing import Any

import click

from qlora_planner.cli import completing
from qlora_planner.cli.options import Verb, output_options, run_options
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.typed_run import run_from
from qlora_planner.cli.values import output_from


@click.command("audit", cls=Verb)
@click.argument("model", shell_complete=completing.models)
@run_options(only=("method", "quant", "double_quant", "compute_dtype", "images"))
@output_options()
def command(model: str, **given: Any) -> int:
    """What will really be 4-bit, what will not and why, and what each exception costs."""
    output = output_from(given)
    run = run_from(given)
    audit_answer = output.session.audit(model, run)
    if output.json:
        answer_json(audit_answer.to_dict())
    else:
        answer(audit_answer.render(output.theme, explain=output.explain))
    return 0
