"""survey: what fits on a card, over the whole catalogue. It is what `--gpu` without a verb does."""

from __future__ import annotations

from typing import Any

import click

from qlora_planner.cli.blas import load_numpy
from qlora_planner.cli.exits import CANNOT_SAY
from qlora_planner.cli.options import Verb, card_options, output_options, run_options, share_option
from qlora_planner.cli.plan_shared import check_shared, write_picture
from qlora_planner.cli.sections import SectionOption
from qlora_planner.cli.streams import answer, answer_csv, answer_json
from qlora_planner.cli.typed_run import run_from
from qlora_planner.cli.values import card_from, output_from


@click.command("survey", cls=Verb)
@share_option()
@click.option("--force", cls=SectionOption, is_flag=True, help="Write over a picture that is there.")
@card_options()
@run_options()
@output_options(csv=True, every=True)
def command(share: str | None, force: bool, **given: Any) -> int:
    """What fits on a card: every model of the catalogue with the recipe recommended for it.

    Grouped and folded for reading; --all, --json and --csv give every model. Exits with 1 when nothing fits.
    """
    load_numpy()
    output = output_from(given)
    check_shared({"--share": share}, force=force)
    run = run_from(given)
    card = card_from(given, output, required=True)
    assert card is not None
    survey = output.session.on(card).survey(run)
    rows = survey.rows
    write_picture(
        share, lambda theme: survey.render(theme, every=output.every, explain=output.explain), output, force=force
    )
    if output.json:
        answer_json(survey.to_dict())
    elif output.csv:
        from qlora_planner.report.survey import CSV_HEADS, csv_row

        answer_csv(list(CSV_HEADS), [csv_row(row) for row in rows])
    else:
        answer(survey.render(output.theme, every=output.every, explain=output.explain))
    verdicts = {row.verdict for row in rows}
    return 0 if verdicts & {"fits", "tight"} else CANNOT_SAY if "cannot-say" in verdicts else 1
