"""A model of the survey as the table needs it, read from the JSON of a survey's row: nothing heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from qlora_planner.record import record


@record
class ModelRow:
    """One model on a card; the fields are those of `planner.survey.survey.SurveyRow`.

    `traced` is whether `peak_bytes` is ranked by a trace, else it is of weights and adapters alone. `options` are the
    recommended run's, `tokens_per_s` its speed; None where nothing fits or nothing was searched.
    """

    model_id: str
    family: str
    params: int
    verdict: str
    longest_seq_len: int | None = None
    peak_bytes: int = 0
    usable_bytes: int = 0
    shortfall_bytes: int | None = None
    note: str | None = None
    traced: bool = True
    options: Mapping[str, Any] | None = None
    tokens_per_s: float | None = None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> ModelRow:
        """From `SurveyRow.to_dict()`."""
        best = document["recommended"] or {}
        values = {spec.name: document[spec.name] for spec in fields(cls) if spec.name in document}
        return cls(**values, options=best.get("options"), tokens_per_s=best.get("tokens_per_s"))
