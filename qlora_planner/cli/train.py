"""train: run what was planned, watch it, survive it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from qlora_planner.cli import completing
from qlora_planner.cli.options import Verb, card_options, data_options, output_options, reward_option, run_options
from qlora_planner.cli.sections import SectionOption
from qlora_planner.cli.streams import answer, answer_json, say
from qlora_planner.cli.train_live import Terminal
from qlora_planner.cli.typed_run import explicit_run_options
from qlora_planner.cli.values import Output, output_from, stand_in_from
from qlora_planner.errors import InputError, MissingError
from qlora_planner.session.training.request import SETTINGS, TrainOptions, request_of
from qlora_planner.text import plain
from qlora_planner.train.settings import REPORTERS, SCHEDULERS, Settings

if TYPE_CHECKING:
    from qlora_planner.session.training.execute import Trained

_EXIT = {"ok": 0, "out-of-memory": 1, "interrupted": 130}


def _option(name: str, kind: Any, text: str, metavar: str = "N") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(f"--{name}", cls=SectionOption, type=kind, default=None, metavar=metavar, help=text)


@click.command("train", cls=Verb)
@click.argument("what", metavar="PLAN|MODEL|RUN", shell_complete=completing.runs)
@_option("output", str, "The run's own folder (runs/NAME of the model).", "DIR")
@click.option("--resume", cls=SectionOption, is_flag=True, help="Go on with the run in --output.")
@click.option("--yes", cls=SectionOption, is_flag=True, help="Start without asking, though it may not fit.")
@click.option("--adjust", cls=SectionOption, is_flag=True, help="Change what was typed where nothing fits so.")
@click.option("--force", cls=SectionOption, is_flag=True, help="Start anew where a run, or something else, is.")
@click.option("--no-recover", cls=SectionOption, is_flag=True, help="Do not try a smaller run when memory runs out.")
@click.option("--device", cls=SectionOption, type=click.Choice(("cuda", "cpu")), default=None, help="Where (cuda).")
@_option("model", str, "Where the weights are, if the plan's own name does not lead there.", "DIR|ID")
@_option("epochs", float, "Passes over the data (1).", "F")
@_option("max-steps", int, "Optimizer steps at most (all epochs).")
@_option("learning-rate", float, "The highest learning rate (2e-4).", "F")
@_option("warmup", float, "Steps of warm-up; below 1 a part of all steps (0.03).", "F")
@click.option(
    "--scheduler", cls=SectionOption, type=click.Choice(SCHEDULERS), default=None, help="How it falls (cosine)."
)
@_option("save-steps", int, "A checkpoint, and an evaluation, every so many steps (50).")
@_option("logging-steps", int, "A loss every so many steps (1).")
@_option("seed", int, "Of adapters, order of the data, dropout (42).")
@_option("eval-split", float, "Part of the rows that is held out (none).", "F")
@click.option("--assistant-only-loss", cls=SectionOption, is_flag=True, help="Learn from the answers of chats alone.")
@_option("pad-token", str, "The token that pads (the tokenizer's).", "TEXT")
@click.option(
    "--report-to", cls=SectionOption, type=click.Choice(REPORTERS), multiple=True, help="The trainer's own reporters."
)
@reward_option()
@card_options()
@data_options(only=("data", "tokenizer", "bad_rows"))
@run_options()
@output_options()
def command(what: str, **given: Any) -> int:
    """Train, with trl's SFTTrainer in a process of its own: a PLAN as it is, a MODEL after planning it.

    The longest batch is tried first. When memory runs out, the run goes on one rung lower. Ctrl-C saves a checkpoint.
    """
    output = output_from(given)
    session = output.session
    options = _options(given, output)
    request = request_of(what, explicit_run_options(given), options)
    from qlora_planner.session.training.execute import train
    from qlora_planner.session.training.finished import finished_summary

    begins = finished_summary(request) is None
    if begins and not (request.planned or options.yes or sys.stdin.isatty()):
        raise InputError("train asks before it starts what it planned, and nobody can answer here; --yes starts it")
    trained = train(session, request, Terminal(output, yes=options.yes))
    for line in trained.unwritten:
        say(line)
    if trained.unwritten and trained.outcome == "ok":
        say(
            f"incomplete: the adapter is in {trained.folder.adapter}, and what is named above is not written;"
            " make room, then --resume writes it"
        )
    if output.json:
        answer_json(trained.summary)
    elif trained.finished_before:
        answer(_finished(trained, request.settings))
    else:
        from qlora_planner.report.training import render_training

        answer(render_training(trained.summary, output.theme, folder=str(trained.folder.path)))
    code = _EXIT.get(trained.outcome, 4)
    return 4 if trained.unwritten and code == 0 else code


def _options(given: Mapping[str, Any], output: Output) -> TrainOptions:
    # A switch that is off and a list that is empty were not typed.
    typed = {name: value for name in SETTINGS if (value := given[name]) is not None}
    settings = {name: value for name, value in typed.items() if value is not False and value != ()}
    try:
        card, reserve_bytes, cap_bytes = stand_in_from(given, output)
    except MissingError as error:
        raise MissingError(f"{error}; or train on the CPU with --device cpu") from None
    return TrainOptions(
        data=given["data"], output=given["output"], weights=given["model"], tokenizer=given["tokenizer"],
        bad_rows=given["bad_rows"], device=given["device"], resume=given["resume"], yes=given["yes"],
        force=given["force"], recover=not given["no_recover"], settings=settings, card=card,
        reserve_bytes=reserve_bytes, cap_bytes=cap_bytes, risk=output.risk, adjust=given["adjust"],
    )  # fmt: skip


def _finished(trained: Trained, settings: Settings) -> str:
    """That nothing is left to do, and how to train on."""
    summary, folder = trained.summary, str(trained.folder.path)
    more = (
        f"--epochs {2 * settings.epochs:g}" if settings.max_steps is None else f"--max-steps {2 * settings.max_steps}"
    )
    return (
        f"{plain(folder)} is finished: {summary.get('steps', '?')} of {summary.get('of', '?')} steps; the adapter is in"
        f" {plain(trained.folder.adapter)}\n"
        f"train on: qlora-plan train {shlex.quote(folder)} --resume {more}"
    )
