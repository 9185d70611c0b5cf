"""myths: common advice about memory, and the figures that contradict it."""

from __future__ import annotations

from typing import Any

import click

from qlora_planner.cli.blas import load_numpy
from qlora_planner.cli.options import Verb, output_options
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.values import output_from


@click.command("myths", cls=Verb)
@output_options()
def command(**given: Any) -> int:
    """What people say about memory, and this program's figures that say otherwise; `table` has them all."""
    load_numpy()
    output = output_from(given)
    from qlora_planner.record import document
    from qlora_planner.report.parts.myths import SCHEMA, myths, render_myths
    from qlora_planner.session.surveying.tables import size_tables
    from qlora_planner.spec.run import RunConfig

    tables = size_tables(output.session, None, RunConfig(), cards=False).tables
    if output.json:
        answer_json({"schema": SCHEMA, "myths": [document(myth) for myth in myths(tables)]})
    else:
        answer(render_myths(tables, output.theme))
    return 0
