"""table: memory by model and method, and the largest model per card, at one stated recipe."""

from __future__ import annotations

from typing import Any

import click

from qlora_planner.cli.blas import load_numpy
from qlora_planner.cli.options import Verb, output_options, run_options
from qlora_planner.cli.sections import OutputOption, SectionOption
from qlora_planner.cli.streams import answer, answer_csv, answer_json
from qlora_planner.cli.values import output_from
from qlora_planner.errors import InputError


@click.command("table", cls=Verb)
@click.option("--models", cls=SectionOption, metavar="MODEL,..", help="Rows of the first table (well-known sizes).")
@run_options(only=("seq_len", "batch_size", "rank"))
@click.option("--markdown", cls=OutputOption, is_flag=True, help="Both tables as Markdown.")
@output_options(csv=True)
def command(models: str | None, markdown: bool, **given: Any) -> int:
    """The two tables that everyone copies: memory by model for each way to train, and the largest model per card.

    Every figure is of the recipe stated above it. Figures with ~ are by formulas, less exact.
    """
    from qlora_planner.cli.typed_run import run_from

    load_numpy()
    output = output_from(given)
    if markdown and (output.json or output.csv):
        raise InputError("--markdown and --json or --csv: one answer has one form; leave one of them out")
    names = None if models is None else [name.strip() for name in models.split(",") if name.strip()]
    made = output.session.table(names, run_from(given))
    if output.json:
        answer_json(made.to_dict())
    elif output.csv:
        from qlora_planner.report.parts.table import CSV_HEADS, csv_rows

        answer_csv(list(CSV_HEADS), csv_rows(made.tables))
    else:
        answer(made.to_markdown() if markdown else made.render(output.theme))
    return 0
