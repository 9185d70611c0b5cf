"""Rows of models that read images. Each size of image is traced by itself, so few have figures of their own."""

from __future__ import annotations

from dataclasses import replace

from qlora_planner.errors import InputError
from qlora_planner.memory.budget import Budget
from qlora_planner.memory.estimate import estimate_within
from qlora_planner.memory.records import MemoryEstimate
from qlora_planner.planner.survey.survey import SurveyRow, refused_row
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Tape

_NO_TRACE = "each size of image is traced by itself, and this one was not yet: `estimate` traces it"
# What one model cannot be asked for is no verdict on its memory.
_CANNOT_SAY = "cannot-say"


def row_with_images(profile: ModelProfile, run: RunConfig, budget: Budget, tape: Tape | None) -> SurveyRow:
    """The row of a model with its tower: `estimate`'s verdict where its trace is at hand.

    Without one a model does not fit whose weights and adapters alone are too large, and of others nobody can say. One
    that takes images in a way that is not known has its reason.
    """
    try:
        answer = estimate_within(budget, profile, run, tape=tape)
    except InputError as error:
        return row_without_tower(profile, run, budget, str(error))
    row = _answered(profile, answer)
    if tape is not None or row.verdict == "will-not-run":
        return replace(row, traced=tape is not None)
    usable, least = row.usable_bytes, answer.static.after_adapters
    row = replace(
        row, peak_bytes=least, headroom_bytes=usable - least, shortfall_bytes=max(0, least - usable) or None,
        verdict="does-not-fit" if least > usable else _CANNOT_SAY,
    )  # fmt: skip
    return row if least > usable else replace(row, note=_NO_TRACE)


def row_without_tower(profile: ModelProfile, run: RunConfig, budget: Budget, why: str) -> SurveyRow:
    """The row of a model of which nobody can say, with the reason."""
    return replace(refused_row(profile, run, budget.usable_bytes, why), verdict=_CANNOT_SAY)


def _answered(profile: ModelProfile, answer: MemoryEstimate) -> SurveyRow:
    assert answer.fit is not None
    usable, floor = answer.fit.usable_bytes, answer.floor_bytes
    limiting = max(answer.components.items(), key=lambda item: item[1])[0]
    return SurveyRow(
        model_id=profile.id, family=profile.model_type, params=profile.params, verdict=answer.fit.verdict,
        run=answer.run, longest_seq_len=None, largest_batch=None, peak_bytes=floor, headroom_bytes=usable - floor,
        usable_bytes=usable, limiting=str(limiting), shortfall_bytes=max(0, floor - usable) or None,
        note=next((problem.message for problem in answer.problems if problem.blocking), None),
    )  # fmt: skip
