"""calibrate: turn this user's verifications into a calibration, which estimates then use."""

from __future__ import annotations

from typing import Any

import click

from qlora_planner.cli.options import Verb, output_options
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.values import output_from


@click.command("calibrate", cls=Verb)
@output_options()
def command(**given: Any) -> int:
    """Predict every verification of this machine again, and learn how far off that is.

    What is counted or derived is never touched: only the context of a card, the spread of predictions, and what a card
    reaches of its rates are learnt, the last from runs that had the card for themselves.
    """
    output = output_from(given)
    calibrated = output.session.calibrate()
    if output.json:
        answer_json(calibrated.to_dict())
    else:
        answer(calibrated.render(output.theme))
    return 0
