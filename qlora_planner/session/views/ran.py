"""Answers of what really ran: steps that were measured, and a training. See `views`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.record import record
from qlora_planner.session.views.planned import attribute_of, shown

if TYPE_CHECKING:
    from qlora_planner.report.parts.theme import Theme
    from qlora_planner.session.measuring.verify import Verification
    from qlora_planner.session.training.execute import Trained


@record
class VerificationAnswer:
    """A Verification: real steps of a run, and what was predicted of them; gives way to the Measurement."""

    verification: Verification

    __str__ = shown

    def __getattr__(self, name: str) -> Any:
        if name in ("verification", "measurement"):
            return attribute_of(self, name)
        return getattr(attribute_of(self, "measurement"), name)

    def render(self, theme: Theme) -> str:
        """The screen of `qlora-plan verify`."""
        from qlora_planner.report.verify import render_verification

        verification = self.verification
        works_bytes = None if verification.floor is None else verification.floor.works_bytes
        return render_verification(
            verification.measurement, theme, floor_bytes=works_bytes, kept=verification.kept, ranks=verification.ranks
        )

    def _repr_html_(self) -> str:
        from qlora_planner.report.pages.notebook import text_html

        return text_html(str(self))

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/verification/1`."""
        return self.verification.to_dict()

    def to_frame(self) -> Any:
        """A pandas frame with a row per figure, predicted and measured; sizes are bytes."""
        import pandas

        compared = self.to_dict()["comparison"]
        return pandas.DataFrame([{"table": name, **row} for name, rows in compared.items() for row in rows])


@record
class TrainingAnswer:
    """What came of a training: the figures of its summary.json, and its folder."""

    trained: Trained

    __str__ = shown

    @property
    def outcome(self) -> str:
        """ok, interrupted, out-of-memory, disk-full, killed or error."""
        return self.trained.outcome

    @property
    def summary(self) -> Mapping[str, Any]:
        """The document `qlora-plan/training/1`."""
        return self.trained.summary

    @property
    def folder(self) -> Path:
        """The run's own folder; `merge` and `generate` take it."""
        return self.trained.folder.path

    def render(self, theme: Theme) -> str:
        """The screen of `qlora-plan train`."""
        from qlora_planner.report.training import render_training

        return render_training(self.summary, theme, folder=str(self.folder))

    def _repr_html_(self) -> str:
        from qlora_planner.report.pages.notebook import text_html

        return text_html(str(self))

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/training/1`."""
        return dict(self.summary)

    def to_frame(self) -> Any:
        """A pandas frame with a row per line of metrics.jsonl: steps, evaluations, checkpoints, attempts, phases."""
        import pandas

        from qlora_planner.runs.record import read_metrics

        return pandas.DataFrame(read_metrics(self.trained.folder.metrics))
