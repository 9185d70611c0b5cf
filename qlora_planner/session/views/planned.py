"""Answers for people: a record with its screen as text, its HTML for a notebook, and its rows as a pandas frame.

An answer gives way to its record: `answer.verdict` is the estimate's. Rendering is imported when something is rendered.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.catalog.trainers import run_document
from qlora_planner.record import document, record

if TYPE_CHECKING:
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.memory.audit.audit import Audit
    from qlora_planner.planner.plan import Plan
    from qlora_planner.planner.survey.survey import SurveyRow
    from qlora_planner.report.parts.theme import Theme
    from qlora_planner.session.check import Check
    from qlora_planner.session.workbench import Workbench
    from qlora_planner.spec.machine import GpuSpec
    from qlora_planner.spec.run import RunConfig

SURVEY_SCHEMA = "qlora-plan/survey/1"


def shown(answer: Any) -> str:
    """The screen of an answer, as it prints."""
    from qlora_planner.report.parts.theme import Theme

    text: str = answer.render(Theme(unicode=True))
    return text


def attribute_of(answer: Any, name: str) -> Any:
    """An attribute of the record that an answer holds as its first field. Raises AttributeError as getattr does."""
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

    __str__ = shown

    def __getattr__(self, name: str) -> Any:
        return attribute_of(self, name)

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
    """A Plan; `asked` are the options that were to stay, `bench` is where it was made."""

    plan: Plan
    asked: Mapping[str, Any]
    card: str
    bench: Workbench

    __str__ = shown

    def __getattr__(self, name: str) -> Any:
        return attribute_of(self, name)

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

    def export(
        self,
        kind: str,
        path: str | os.PathLike[str] | None = None,
        *,
        data: str | None = None,
        force: bool = False,
        rewards: Sequence[str] = (),
    ) -> str:
        """The plan in the words of another tool: its text, which is also written to `path` where one is given.

        `kind` is "trl", "notebook", "percent", "accelerate", "axolotl" or "llama-factory", or for several cards
        "torchrun", "slurm" or "skypilot"; `data` the path of the samples (the plan's own), and `rewards` what a
        trainer that generates learns from, as ("rewards.py:length",). Raises InputError for an
        unknown kind, for what it cannot express, for a file that is there already, unless `force`, and for one that
        cannot be written.
        """
        from qlora_planner.session.plan_files import exported, write_export

        bench = self.bench.open(self.plan.model.path or self.plan.model.id)
        text = exported(self.plan, kind, bench, data, rewards)[0]
        return text if path is None else write_export(text, path, force=force)

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

    __str__ = shown

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
            "run": run_document(self.run),
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

    __str__ = shown

    def __getattr__(self, name: str) -> Any:
        return attribute_of(self, name)

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

    __str__ = shown

    def __getattr__(self, name: str) -> Any:
        return attribute_of(self, name)

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
