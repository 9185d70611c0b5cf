"""table: memory by model and method, and the largest model per card, at one stated recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qlora_planner.cli.blas import load_numpy
from qlora_planner.cli.options import OutputOption, SectionOption, Verb, output_options, run_options
from qlora_planner.cli.streams import answer, answer_csv, answer_json
from qlora_planner.cli.values import Output, output_from
from qlora_planner.errors import InputError

if TYPE_CHECKING:
    from qlora_planner.planner.survey.size_rows import Tables
    from qlora_planner.planner.survey.survey import Candidate
    from qlora_planner.spec.model import ModelProfile
    from qlora_planner.spec.run import RunConfig


@click.command("table", cls=Verb)
@click.option("--models", cls=SectionOption, metavar="MODEL,..", help="Rows of the first table (well-known sizes).")
@run_options(only=("seq_len", "batch_size", "rank"))
@click.option("--markdown", cls=OutputOption, is_flag=True, help="Both tables as Markdown.")
@output_options(csv=True)
def command(models: str | None, markdown: bool, **given: Any) -> int:
    """The two tables that everyone copies: memory by model for each way to train, and the largest model per card.

    Every figure is of the recipe stated above it. Figures with ~ are by closed forms: nothing is traced for them.
    """
    from qlora_planner.cli.options import run_from

    load_numpy()
    output = output_from(given)
    if markdown and (output.json or output.csv):
        raise InputError("--markdown and --json or --csv: one answer has one form; leave one of them out")
    tables = tables_for(models, run_from(given), output)
    if output.json:
        answer_json(tables.to_dict())
        return 0
    from qlora_planner.report.parts.table import CSV_HEADS, csv_rows, render_markdown, render_tables

    if output.csv:
        answer_csv(list(CSV_HEADS), csv_rows(tables))
    else:
        answer(render_markdown(tables) if markdown else render_tables(tables, output.theme))
    return 0


def tables_for(models: str | None, run: RunConfig, output: Output) -> Tables:
    """Both tables; `models` names the rows of the first, separated by commas."""
    from qlora_planner.catalog.gpus import GpuCatalogue, parse_gpu
    from qlora_planner.planner.survey.size_rows import COMMON_CARD_GB
    from qlora_planner.planner.survey.size_tables import CARD_SIZES_GB, MODELS, make_tables
    from qlora_planner.planner.survey.survey import candidate
    from qlora_planner.session import calibration, tape_for
    from qlora_planner.session.surveying.indexed import indexed_candidates
    from qlora_planner.sources.catalogue import ModelCatalogue
    from qlora_planner.sources.locations import gpus_dirs, models_dirs, tapes_dirs
    from qlora_planner.sources.tapes import stored_sweep
    from qlora_planner.spec.machine import GpuSpec

    names = MODELS if models is None else tuple(name.strip() for name in models.split(",") if name.strip())
    if not names:
        raise InputError("--models is empty: name models as llama-3.1-8b,qwen2.5-7b, or leave it out")
    shown = [output.session.model(name) for name in names]
    card = GpuSpec(name="any", label="any card", memory_bytes=1)
    folders = models_dirs(output.profiles)
    candidates, _ = indexed_candidates(folders, card, run, output.warn)
    indexed = {row.model_id: row for row in candidates}

    def candidate_of(profile: ModelProfile) -> Candidate:
        if profile.id in indexed:
            return indexed[profile.id]
        return candidate(profile, run, card, stored_sweep(profile, tapes_dirs(output.profiles)))

    catalogue = GpuCatalogue(gpus_dirs(output.profiles))
    return make_tables(
        shown,
        list(ModelCatalogue(folders).load_all(output.warn)),
        [parse_gpu(f"{size}GB", catalogue) for size in CARD_SIZES_GB],
        run=run,
        tape_of=lambda profile, wanted: tape_for(profile, wanted, profiles=output.profiles, stored_only=True),
        candidate_of=candidate_of,
        calibration=calibration(output.profiles),
        common_card=parse_gpu(f"{COMMON_CARD_GB}GB", catalogue),
    )
