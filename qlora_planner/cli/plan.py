"""plan: the run that is recommended for one model on one card."""

from __future__ import annotations

from typing import Any

import click

from qlora_planner.cli import completing
from qlora_planner.cli.blas import load_numpy
from qlora_planner.cli.data import summary_from
from qlora_planner.cli.exits import exit_code
from qlora_planner.cli.options import (
    Verb,
    card_options,
    data_options,
    output_options,
    reward_option,
    run_options,
    share_option,
)
from qlora_planner.cli.plan_shared import check_shared, write_picture, write_shared
from qlora_planner.cli.sections import SectionOption
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.typed_run import explicit_run_options, run_from
from qlora_planner.cli.values import card_from, output_from
from qlora_planner.session.plan_files import wanted_files, write_files
from qlora_planner.session.planning import CHEAPEST, cheapest_card, check_batch, tokenizer_of

OBJECTIVES = ("throughput", "context", "rank", "quality", "cheapest")


@click.command("plan", cls=Verb)
@click.argument("model", shell_complete=completing.models)
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
@click.option(
    "--adjust", cls=SectionOption, is_flag=True, help="Change what was typed where nothing fits so; what is said."
)
@click.option(
    "--compare",
    cls=SectionOption,
    shell_complete=completing.cards,
    multiple=True,
    metavar="GPU,..",
    help="The same run on these cards too.",
)
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
    help="The run as trl, notebook (.ipynb), percent (its cells as .py), accelerate, axolotl, llama-factory or"
    " trl-config (for `trl sft --config`): printed, or into FILE.",
)
@share_option()
@reward_option()
@card_options()
@data_options()
@run_options()
@output_options()
def command(
    model: str,
    objective: str,
    effective_batch: int | None,
    adjust: bool,
    compare: tuple[str, ...],
    save: str | None,
    force: bool,
    exports: tuple[str, ...],
    report: str | None,
    csv_file: str | None,
    parquet_file: str | None,
    share: str | None,
    **given: Any,
) -> int:
    """The recommended run for MODEL on a card, its memory, and what each knob costs.

    Run options that are given stay, everything else is searched. Exits with 1 when nothing fits so, and names the
    nearest run that does, which --adjust takes.
    """
    load_numpy()
    output = output_from(given)
    wanted = wanted_files(save, exports, document=output.json, force=force)
    shared = {"--report": report, "--csv": csv_file, "--parquet": parquet_file, "--share": share}
    check_shared(shared, force=force)
    explicit = explicit_run_options(given)
    run = run_from(given)
    check_batch(explicit, effective_batch)
    session = output.session
    others = [session.gpu(name) for text in compare for name in text.split(",")]
    card = None if objective == CHEAPEST and not given.get("gpu") else card_from(given, output, required=True)
    profile = session.model(model)
    if card is None:
        card = cheapest_card(session, profile, run, explicit, None)
    bench = session.on(card)
    planned = bench.plan(
        model, run, fixed=explicit, objective=objective, effective_batch=effective_batch,
        data=summary_from(given, tokenizer_of(model, profile), output), compare=others, adjust=adjust,
    )  # fmt: skip
    printed = write_files(planned.plan, wanted, bench.open(model), given["data"], given["reward"])
    write_shared(planned.plan, shared, explicit, card, output, force=force)
    write_picture(share, lambda theme: planned.render(theme, explain=output.explain), output, force=force)
    if printed is not None:
        answer(printed)
    elif output.json:
        answer_json(planned.to_dict())
    else:
        answer(planned.render(output.theme, explain=output.explain))
    return exit_code(planned.estimate)
