"""calibrate: turn this user's verifications into a calibration, which estimates then use."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import click

from qlora_planner.cli.options import Verb, output_options
from qlora_planner.cli.streams import answer, answer_json, patience
from qlora_planner.cli.values import output_from
from qlora_planner.errors import MissingError, PlannerError

SCHEMA = "qlora-plan/calibrated/1"
# Beside the shipped ones, under a name that none of them has.
FILE_NAME = "user.json"


@click.command("calibrate", cls=Verb)
@output_options()
def command(**given: Any) -> int:
    """Predict every verification of this machine again, and learn how far off that is.

    What is counted or derived is never touched: only the context of a card, the spread of predictions, and what a card
    reaches of its rates are learnt, the last from runs that had the card for themselves.
    """
    output = output_from(given)
    from qlora_planner.evidence.calibration import calibrate, latest, usable
    from qlora_planner.session.measuring.predictions import predictions_of, speed_traits
    from qlora_planner.sources.evidence import read_all, read_calibration, write_calibration
    from qlora_planner.sources.locations import calibrations_dirs, evidence_path, user_profiles

    everything = read_all(evidence_path())
    rows = [row for row in latest(everything) if usable(row)]
    if not rows:
        what = (
            "there is no verification yet" if not everything else "no verification ran whole, unlimited and on a card"
        )
        raise MissingError(f"{evidence_path()}: {what}; `qlora-plan verify MODEL` makes one")
    pairs, skipped = [], []
    with patience(f"predicting {len(rows)} runs again, some seconds each", output.quiet):
        for row in rows:
            try:
                pairs += [(row, predicted) for predicted in predictions_of(row, output.warn)]
            except PlannerError as error:
                skipped.append(str(error))
    path = user_profiles() / "calibrations" / FILE_NAME
    shipped = read_calibration([folder for folder in calibrations_dirs() if folder != path.parent])
    compared = {id(row): row for row, _ in pairs}.values()
    calibration = calibrate(pairs, datetime.now(UTC).date().isoformat())
    calibration = replace(calibration, speed=speed_traits(compared, output.warn, shipped))
    write_calibration(path, calibration)
    for line in skipped:
        output.warn(f"left out: {line}")
    if output.json:
        from qlora_planner.report.calibration import to_document

        answer_json({"schema": SCHEMA, "path": str(path), "runs": len(rows), **to_document(calibration)})
    else:
        from qlora_planner.report.calibration import render_calibration

        answer(render_calibration(calibration, len(rows) - len(skipped), len(everything), str(path), output.theme))
    return 0
