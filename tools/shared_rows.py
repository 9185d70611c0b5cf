"""Rows of evidence that people share: `check` looks at files of a pull request, `fold` makes the calibration of each
card from its rows.

python -m tools.shared_rows check FILE...
python -m tools.shared_rows fold profiles
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from qlora_planner.errors import InputError, PlannerError
from qlora_planner.evidence import Measurement
from qlora_planner.evidence.calibration import Prediction, calibrate, card_slug, latest
from qlora_planner.evidence.sharing import row_path, sharing_faults
from qlora_planner.session.measuring.predictions import predictions_of, speed_traits
from qlora_planner.sources.evidence import read_all, write_calibration

Predict = Callable[[Measurement, Callable[[str], None]], list[Prediction]]
# Beyond it a row is no residual of a model that is right within a percent: something else was measured, or predicted.
FARTHEST = 0.25


def checked(path: Path, predict: Predict = predictions_of) -> list[str]:
    """What is wrong with a shared file, each a sentence; empty where it can be taken."""
    try:
        rows = read_all(path)
    except InputError as error:
        return [str(error)]
    if len(rows) != 1:
        return [f"{path}: holds {len(rows)} rows; a file holds one"]
    row = rows[0]
    faults = sharing_faults(row)
    if not faults and "/".join(path.parts[-2:]) != row_path(row):
        faults.append(f"its name must be {row_path(row)}, as `verify --share` gives it")
    if not faults:
        faults += _far_off(row, predict)
    return [f"{path}: {fault}" for fault in faults]


def _far_off(row: Measurement, predict: Predict) -> list[str]:
    """How far the run is from what is predicted for it now, where that is too far."""
    try:
        predicted = predict(row, lambda _: None)
    except PlannerError as error:
        return [f"cannot be predicted again: {error}"]
    measured = row.phases["training"].allocated_bytes or 0
    closest = min((abs(measured / one.allocated_bytes - 1) for one in predicted if one.allocated_bytes), default=0.0)
    far = f"allocated is {closest:.0%} from what is predicted; a person should look at it"
    return [far] if closest > FARTHEST else []


def fold(profiles: Path, predict: Predict = predictions_of) -> list[Path]:
    """Write calibrations/shared-CARD.json for each card that has shared rows, from all of them; gives what was written.

    Raises PlannerError for a row that cannot be read or predicted.
    """
    by_card: dict[str, list[Measurement]] = {}
    for path in sorted((profiles / "measurements" / "shared").glob("*/*.jsonl")):
        for row in read_all(path):
            by_card.setdefault(card_slug(row.gpu.name) if row.gpu else "cpu", []).append(row)
    written = []
    for card, rows in by_card.items():
        pairs = [(row, prediction) for row in latest(rows) for prediction in predict(row, lambda _: None)]
        learnt = calibrate(pairs, datetime.now(UTC).date().isoformat())
        path = profiles / "calibrations" / f"shared-{card}.json"
        write_calibration(path, replace(learnt, speed=speed_traits(rows, lambda _: None)))
        written.append(path)
    return written


def main(words: Sequence[str]) -> int:
    """0 where every file can be taken; 1 with a line for each fault."""
    if words[:1] == ["fold"] and len(words) == 2:
        print("\n".join(map(str, fold(Path(words[1])))) or "no shared rows")
        return 0
    if words[:1] != ["check"]:
        print(__doc__, file=sys.stderr)
        return 2
    faults = [fault for name in words[1:] for fault in checked(Path(name))]
    print("\n".join(faults) if faults else f"{len(words) - 1} rows can be taken")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
