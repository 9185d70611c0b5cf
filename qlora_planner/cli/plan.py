"""plan: the run that is recommended for one model on one card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qlora_planner.cli.blas import load_numpy
from qlora_planner.cli.data import summary_from
from qlora_planner.cli.exits import exit_code
from qlora_planner.cli.loading import profile_for
from qlora_planner.cli.options import (
    SectionOption,
    Verb,
    card_options,
    data_options,
    explicit_run_options,
    output_options,
    run_from,
    run_options,
)
from qlora_planner.cli.plan_files import wanted_files, with_folder, write_files
from qlora_planner.cli.plan_shared import check_shared, write_shared
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.values import Output, card_from, output_from
from qlora_planner.errors import InputError

if TYPE_CHECKING:
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.spec.model import ModelProfile
    from qlora_planner.spec.run import RunConfig

OBJECTIVES = ("throughput", "context", "rank", "quality", "cheapest")


@click.command("plan", cls=Verb)
@click.argument("model")
@click.option(
    "--objective",
    cls=SectionOption,
    type=click.Choice(OBJECTIVES),
    default="throughput",
    help="What is best (throughput).",
)
@click.option(
    "--effective-batch",
    cls=SectionOption,
    type=click.IntRange(1, 1 << 16),
    metavar="N",
    help="Sequences per optimizer step, whatever the micro-batch (16).",
)
@click.option("--compare", cls=SectionOption, multiple=True, metavar="GPU,..", help="The same run on these cards too.")
@click.option("--save", cls=SectionOption, metavar="FILE", help="Write the plan as YAML for verify, check and train.")
@click.option("--force", cls=SectionOption, is_flag=True, help="Write over files that are there.")
@click.option("--report", cls=SectionOption, metavar="FILE", help="A report to hand on, .md or .html.")
@click.option("--csv", "csv_file", cls=SectionOption, metavar="FILE", help="Compared cards and prices as CSV.")
@click.option("--parquet", "parquet_file", cls=SectionOption, metavar="FILE", help="The same as parquet.")
@click.option(
    "--export",
    "exports",
    cls=SectionOption,
    multiple=True,
    metavar="KIND[=FILE]",
    help="The run as trl, notebook (.ipynb), percent (its cells as .py), accelerate, axolotl or llama-factory: printed,"
    " or into FILE.",
)
@card_options()
@data_options()
@run_options()
@output_options()
def command(
    model: str,
    objective: str,
    effective_batch: int | None,
    compare: tuple[str, ...],
    save: str | None,
    force: bool,
    exports: tuple[str, ...],
    report: str | None,
    csv_file: str | None,
    parquet_file: str | None,
    **given: Any,
) -> int:
    """The recommended run for MODEL on a card, its memory, and what each knob costs.

    Run options that are given are kept as far as they fit; everything else is searched. Exits with 1 when nothing fits.
    """
    load_numpy()
    output = output_from(given)
    wanted = wanted_files(save, exports, output, force=force)
    shared = {"--report": report, "--csv": csv_file, "--parquet": parquet_file}
    check_shared(shared, force=force)
    explicit = explicit_run_options(given)
    run = run_from(given)
    _check_batch(explicit, effective_batch)
    from qlora_planner import session

    others = [session.load_gpu(name, profiles=output.profiles) for text in compare for name in text.split(",")]
    if objective == "cheapest":
        profile = profile_for(model, output)
        card: PlannedCard | None = cheapest_card(profile, run, explicit, given, output)
    else:
        card = card_from(given, output, required=True)
        profile = profile_for(model, output)
    assert card is not None
    data = summary_from(given, model if Path(model).exists() else profile.id, output)
    plan = (
        output.session()
        .on(card)
        .open(profile)
        .plan(run, explicit, objective=objective, effective_batch=effective_batch, data=data, compare=others)
    )
    plan = with_folder(plan, model)
    printed = write_files(plan, wanted, profile, card, given["data"], output)
    write_shared(plan, shared, explicit, card, output, force=force)
    if printed is not None:
        answer(printed)
    elif output.json:
        answer_json(plan.to_dict())
    else:
        from qlora_planner.report.plan import render_plan

        answer(render_plan(plan, explicit, card.asked, output.theme, explain=output.explain))
    return exit_code(plan.estimate)


def _check_batch(explicit: Mapping[str, Any], effective_batch: int | None) -> None:
    batch = explicit.get("batch_size")
    if effective_batch is not None and "grad_accum" in explicit:
        raise InputError("--effective-batch and --grad-accum say the same thing twice: leave one out")
    if effective_batch is not None and batch is not None and effective_batch % batch:
        raise InputError(f"--effective-batch {effective_batch} is no multiple of --batch-size {batch}")


def cheapest_card(
    profile: ModelProfile, run: RunConfig, explicit: Mapping[str, Any], given: Mapping[str, Any], output: Output
) -> PlannedCard:
    """The card with a price on which a token of the best run costs least; those of --gpu, or the whole catalogue."""
    from qlora_planner import session
    from qlora_planner.catalog.gpus import GpuCatalogue
    from qlora_planner.planner.cheapest_gpu import cheapest
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.sources.locations import gpus_dirs, tapes_dirs
    from qlora_planner.sources.tapes import stored_sweep

    if given.get("gpu"):
        card = card_from(given, output, required=True)
        assert card is not None
        cards = [card.gpu]
    else:
        cards = list(GpuCatalogue(gpus_dirs(output.profiles)).all())
    cheapest_gpu = cheapest(
        profile,
        run,
        explicit,
        cards,
        stored_sweep(profile, tapes_dirs(output.profiles)),
        session.calibration(output.profiles),
    )
    if cheapest_gpu is None:
        raise InputError(
            f"--objective cheapest: {profile.id} fits on no card with a known price; see `qlora-plan gpus`"
        )
    return PlannedCard(gpu=cheapest_gpu, reserve_bytes=0, cap_bytes=None, asked=cheapest_gpu.name)
