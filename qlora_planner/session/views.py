"""Answers for people: a record with its screen as text, its HTML for a notebook, and its rows as a pandas frame.

An answer gives way to its record: `answer.verdict` is the estimate's. Rendering is imported when something is rendered.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.record import document, record

if TYPE_CHECKING:
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.memory.audit.audit import Audit
    from qlora_planner.planner.plan import Plan
    from qlora_planner.planner.survey.survey import SurveyRow
    from qlora_planner.report.parts.theme import Theme
    from qlora_planner.session.check import Check
    from qlora_planner.session.measuring.verify import Verification
    from qlora_planner.session.training.execute import Trained
    from qlora_planner.spec.machine import GpuSpec
    from qlora_planner.spec.run import RunConfig

SURVEY_SCHEMA = "qlora-plan/survey/1"


def _shown(answer: Any) -> str:
    from qlora_planner.report.parts.theme import Theme

    text: str = answer.render(Theme(unicode=True))
    return text


def _of_record(answer: Any, name: str) -> Any:
    """An attribute of the record that an answer holds as its first field."""
    own = next(iter(answer.__struct_fields__))
    if name == own or name.startswith("__"):  # not there yet, as while it is unpickled
        raise AttributeError(name)
    return getattr(getattr(answer, own), name)


@record
class EstimateAnswer:
    """A MemoryEstimate, on a card or on none."""

    estimate: MemoryEstimate
    gpu: GpuSpec | None
    card: str | None  # as it was typed

    __str__ = _shown

    def __getattr__(self, name: str) -> Any:
        return _of_record(self, name)

    def render(self, theme: Theme, *, explain: bool = False) -> str:
        """The screen of `qlora-plan estimate`."""
        from qlora_planner.report.estimate import render_estimate

        return render_estimate(self.estimate, self.gpu, theme, card=self.card, explain=explain)

    def _repr_html_(self) -> str:
        from qlora_planner.report.pages.notebook import estimate_html

        return estimate_html(self.estimate, self.gpu)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/estimate/1`."""
        return self.estimate.to_dict()

    def to_frame(self) -> Any:
        """A pandas frame of the peak: a row per component with its bytes, the basis of the figure and its reason."""
        import pandas

        lines = self.estimate.lines
        rows = [(line.component.value, line.size_bytes, line.basis.value, line.why) for line in lines]
        return pandas.DataFrame(rows, columns=["component", "bytes", "basis", "why"])


@record
class PlanAnswer:
    """A Plan; `asked` are the options that were to stay."""

    plan: Plan
    asked: Mapping[str, Any]
    card: str

    __str__ = _shown

    def __getattr__(self, name: str) -> Any:
        return _of_record(self, name)

    @property
    def verdict(self) -> str | None:
        """The verdict on the recommended run."""
        return self.plan.estimate.verdict

    def render(self, theme: Theme, *, explain: bool = False) -> str:
        """The screen of `qlora-plan plan`."""
        from qlora_planner.report.plan import render_plan

        return render_plan(self.plan, self.asked, self.card, theme, explain=explain)

    def _repr_html_(self) -> str:
        from qlora_planner.report.pages.notebook import plan_html

        return plan_html(self.plan, self.asked, self.card)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/plan/1`."""
        return self.plan.to_dict()

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write it as commented YAML for `verify`, `check` and `train`, its figures beside it; returns its path.

        Raises InputError for a file that is there already, unless `force`, and for one that cannot be written.
        """
        from qlora_planner.session.plan_files import save_plan

        return save_plan(self.plan, path, force=force)

    def report(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write a report to hand on, .md or .html by the end of its name; returns its path. Raises as `save` does."""
        from qlora_planner.session.plan_files import write_report

        return write_report(self.plan, self.asked, self.card, path, force=force)

    def to_frame(self) -> Any:
        """A pandas frame of the plan, the cards it was compared with and a row per price: the `table` column says
        which. Sizes are bytes."""
        from qlora_planner.report.pages.tabular import comparison_frame

        return comparison_frame(self.plan.to_dict())


@record
class SurveyAnswer:
    """A SurveyRow per model of the catalogue, largest first; iterates over them."""

    rows: tuple[SurveyRow, ...]
    gpu: GpuSpec
    run: RunConfig
    card: str
    reserve_bytes: int
    cap_bytes: int | None

    __str__ = _shown

    def __iter__(self) -> Iterator[SurveyRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> SurveyRow:
        return self.rows[at]

    def render(self, theme: Theme, *, every: bool = False, explain: bool = False) -> str:
        """The screen of `qlora-plan --gpu`; `every` folds no row away."""
        from qlora_planner.report.survey import render_survey

        return render_survey(self.rows, self.gpu, self.run, theme, card=self.card, every=every, explain=explain)

    def _repr_html_(self) -> str:
        from qlora_planner.report.pages.notebook import survey_html

        return survey_html(self.rows, self.gpu)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/survey/1`."""
        from qlora_planner.catalog.gpus import remarks

        gpu, problems = self.gpu, remarks(self.gpu, self.run.stack)
        return {
            "schema": SURVEY_SCHEMA,
            "gpu": {"name": gpu.name, "label": gpu.label, "memory_bytes": gpu.memory_bytes},
            "reserve_bytes": self.reserve_bytes,
            "cap_bytes": self.cap_bytes,
            "usable_bytes": self.rows[0].usable_bytes if self.rows else None,
            "run": self.run.to_dict(),
            "problems": [
                {"code": problem.code, "message": problem.message, "fix": problem.fix} for problem in problems
            ],
            "played": False,  # ranked by a sweep or closed forms; `plan` plays
            "models": document(self.rows),
        }

    def to_frame(self) -> Any:
        """A pandas frame with a row per model, in the columns of `--csv`; sizes are bytes, unknowns are missing."""
        from qlora_planner.report.survey import survey_frame

        return survey_frame(self.rows)


@record
class AuditAnswer:
    """An Audit: what of a model becomes 4-bit, and what does not."""

    audit: Audit

    __str__ = _shown

    def __getattr__(self, name: str) -> Any:
        return _of_record(self, name)

    def render(self, theme: Theme, *, explain: bool = False) -> str:
        """The screen of `qlora-plan audit`."""
        from qlora_planner.report.audit import render_audit

        return render_audit(self.audit, theme, explain=explain)

    def _repr_html_(self) -> str:
        from qlora_planner.report.pages.notebook import audit_html

        return audit_html(self.audit)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/audit/1`."""
        return self.audit.to_dict()

    def to_frame(self) -> Any:
        """A pandas frame with a row per kind of tensor; sizes are bytes."""
        import pandas

        return pandas.DataFrame([row.to_dict() for row in self.audit.rows])


@record
class CheckAnswer:
    """A Check: a file's run on a card, and the changes by which it fits."""

    check: Check
    gpu: GpuSpec

    __str__ = _shown

    def __getattr__(self, name: str) -> Any:
        return _of_record(self, name)

    @property
    def verdict(self) -> str | None:
        """The verdict on the file as it is."""
        return self.check.estimate.verdict

    def render(self, theme: Theme, *, explain: bool = False) -> str:
        """The screen of `qlora-plan check`."""
        from qlora_planner.report.check import render_check

        check = self.check
        fixes = [(fix, check.keys_of(fix)) for fix in check.fixes]
        return render_check(check.estimate, self.gpu, check.reading, fixes, theme, explain=explain)

    def _repr_html_(self) -> str:
        from qlora_planner.report.pages.notebook import estimate_html

        return estimate_html(self.check.estimate, self.gpu)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/check/1`."""
        return self.check.to_dict()


@record
class VerificationAnswer:
    """A Verification: real steps of a run, and what was predicted of them; gives way to the Measurement."""

    verification: Verification

    __str__ = _shown

    def __getattr__(self, name: str) -> Any:
        if name in ("verification", "measurement"):
            return _of_record(self, name)
        return getattr(_of_record(self, "measurement"), name)

    def render(self, theme: Theme) -> str:
        """The screen of `qlora-plan verify`."""
        from qlora_planner.report.verify import render_verification

        verification = self.verification
        works_bytes = None if verification.floor is None else verification.floor.works_bytes
        return render_verification(verification.measurement, theme, floor_bytes=works_bytes, kept=verification.kept)

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

    __str__ = _shown

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
