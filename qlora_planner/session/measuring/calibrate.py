"""From this user's verifications to a calibration: every measured run predicted again, and what that teaches."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import MissingError, PlannerError
from qlora_planner.record import record
from qlora_planner.session.views.planned import shown

if TYPE_CHECKING:
    from qlora_planner.evidence.calibration import Calibration
    from qlora_planner.report.parts.theme import Theme
    from qlora_planner.session.session import Session

SCHEMA = "qlora-plan/calibrated/1"
# Beside the shipped ones, under a name that none of them has.
FILE_NAME = "user.json"


@record
class CalibrationAnswer:
    """A Calibration, the file it was written to, and how many verifications it rests on.

    `runs` count once each and ran whole, unlimited and on a card; `verifications` are all there are; `left_out` says
    per run why it could not be predicted again.
    """

    calibration: Calibration
    path: Path
    runs: int
    verifications: int
    left_out: tuple[str, ...]

    __str__ = shown

    def render(self, theme: Theme) -> str:
        """The screen of `qlora-plan calibrate`."""
        from qlora_planner.report.calibration import render_calibration

        used = self.runs - len(self.left_out)
        return render_calibration(self.calibration, used, self.verifications, str(self.path), theme)

    def _repr_html_(self) -> str:
        from qlora_planner.report.pages.notebook import text_html

        return text_html(str(self))

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/calibrated/1`."""
        from qlora_planner.report.calibration import to_document

        return {"schema": SCHEMA, "path": str(self.path), "runs": self.runs, **to_document(self.calibration)}


def calibrate(session: Session) -> CalibrationAnswer:
    """See `Session.calibrate`."""
    from qlora_planner.evidence import calibration as learning
    from qlora_planner.session.measuring.predictions import predictions_of, speed_traits
    from qlora_planner.sources.evidence import read_all, read_calibration, write_calibration
    from qlora_planner.sources.locations import calibrations_dirs, evidence_path, user_profiles

    everything = read_all(evidence_path())
    rows = [row for row in learning.latest(everything) if learning.usable(row)]
    if not rows:
        what = (
            "there is no verification yet" if not everything else "no verification ran whole, unlimited and on a card"
        )
        raise MissingError(f"{evidence_path()}: {what}; `qlora-plan verify MODEL` makes one")
    pairs, left_out = [], []
    with session.waiting(f"predicting {len(rows)} runs again, some seconds each"):
        for row in rows:
            try:
                pairs += [(row, predicted) for predicted in predictions_of(row, session.tell)]
            except PlannerError as error:
                left_out.append(str(error))
    path = user_profiles() / "calibrations" / FILE_NAME
    shipped = read_calibration([folder for folder in calibrations_dirs() if folder != path.parent])
    compared = {id(row): row for row, _ in pairs}.values()
    learnt = learning.calibrate(pairs, datetime.now(UTC).date().isoformat())
    learnt = replace(learnt, speed=speed_traits(compared, session.tell, shipped))
    write_calibration(path, learnt)
    for line in left_out:
        session.tell(f"left out: {line}")
    return CalibrationAnswer(
        calibration=learnt, path=path, runs=len(rows), verifications=len(everything), left_out=tuple(left_out)
    )
