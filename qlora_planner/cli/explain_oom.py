"""explain-oom: what ran out of memory, when, who held it, and what would have fitted; from a log or a snapshot."""

from __future__ import annotations

from typing import Any

import click

from qlora_planner.cli import completing
from qlora_planner.cli.options import Verb, output_options
from qlora_planner.cli.sections import SectionOption
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.values import output_from


@click.command("explain-oom", cls=Verb)
@click.argument("log", metavar="LOG", shell_complete=completing.files)
@click.option("--plan", "plan", cls=SectionOption, metavar="FILE", help="The plan of the run that failed.")
@output_options()
def command(log: str, plan: str | None, **given: Any) -> int:
    """What LOG (a log, a pasted traceback, a memory snapshot of torch; - for stdin) says about running out of memory.

    Needs no torch, and runs nothing of a snapshot. With --plan, what beat the plan and the smallest change that fits.
    """
    output = output_from(given)
    explained = output.session.explain_oom(log, plan=plan)
    if output.json:
        answer_json(explained.to_dict())
    else:
        answer(explained.render(output.theme))
    return 0
