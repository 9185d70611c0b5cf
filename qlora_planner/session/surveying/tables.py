"""The two tables that everyone copies: memory by model for each way to train, and the largest model per card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError
from qlora_planner.record import record
from qlora_planner.session.views.planned import shown
from qlora_planner.spec.model import ModelProfile

if TYPE_CHECKING:
    from qlora_planner.planner.survey.size_rows import Tables
    from qlora_planner.planner.survey.survey import Candidate
    from qlora_planner.report.parts.theme import Theme
    from qlora_planner.session.session import Session
    from qlora_planner.spec.run import RunConfig


@record
class TablesAnswer:
    """Both tables, at one stated recipe."""

    tables: Tables

    __str__ = shown

    def render(self, theme: Theme) -> str:
        """The screen of `qlora-plan table`."""
        from qlora_planner.report.parts.table import render_tables

        return render_tables(self.tables, theme)

    def to_markdown(self) -> str:
        """Both as Markdown."""
        from qlora_planner.report.parts.table import render_markdown

        return render_markdown(self.tables)

    def _repr_html_(self) -> str:
        from qlora_planner.report.pages.notebook import text_html

        return text_html(str(self))

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/table/1`."""
        return self.tables.to_dict()

    def to_frame(self) -> Any:
        """A pandas frame with a row per figure, in the columns of `--csv`; sizes are bytes."""
        import pandas

        from qlora_planner.report.parts.table import CSV_HEADS, csv_rows

        return pandas.DataFrame(list(csv_rows(self.tables)), columns=list(CSV_HEADS))


def size_tables(
    session: Session, models: Sequence[str | ModelProfile] | None, run: RunConfig, *, cards: bool = True
) -> TablesAnswer:
    """See `Session.table`; without `cards` what the models' weights alone say, in a tenth of the time."""
    from qlora_planner.catalog.gpus import parse_gpu
    from qlora_planner.planner.survey.size_rows import COMMON_CARD_GB, METHODS
    from qlora_planner.planner.survey.size_tables import CARD_SIZES_GB, MODELS, make_tables
    from qlora_planner.planner.survey.survey import candidate
    from qlora_planner.session.surveying.indexed import indexed_candidates
    from qlora_planner.session.traces import sweep_for, tape_for
    from qlora_planner.sources.catalogue import ModelCatalogue
    from qlora_planner.sources.locations import models_dirs
    from qlora_planner.spec.machine import GpuSpec

    if models is not None and not models:
        raise InputError("--models is empty: name models as llama-3.1-8b,qwen2.5-7b, or leave it out")
    shown = [session.model(name) for name in (MODELS if models is None else models)]
    card = GpuSpec(name="any", label="any card", memory_bytes=1)
    folders = models_dirs(session.profiles)
    candidates, _ = indexed_candidates(folders, card, run, session.tell)
    indexed = {row.model_id: row for row in candidates}

    def candidate_of(profile: ModelProfile, wanted: RunConfig) -> Candidate:
        if profile.id in indexed and wanted == run.with_(**METHODS[-1].options):
            return indexed[profile.id]
        return candidate(profile, wanted, card, sweep_for(profile, profiles=session.profiles))

    tables = make_tables(
        shown,
        list(ModelCatalogue(folders).load_all(session.tell)) if cards else (),
        [parse_gpu(f"{size}GB", session.gpus) for size in CARD_SIZES_GB] if cards else (),
        run=run,
        tape_of=lambda profile, wanted: tape_for(profile, wanted, profiles=session.profiles, stored_only=True),
        candidate_of=candidate_of,
        calibration=session.calibration,
        common_card=parse_gpu(f"{COMMON_CARD_GB}GB", session.gpus),
        methods=METHODS if cards else (),
    )
    return TablesAnswer(tables=tables)
