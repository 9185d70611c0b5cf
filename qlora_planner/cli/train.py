"""train: run what was planned, watch it, survive it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qlora_planner.cli.data import summary_from
from qlora_planner.cli.options import (
    SectionOption,
    Verb,
    card_options,
    data_options,
    explicit_run_options,
    output_options,
    run_options,
)
from qlora_planner.cli.train_asked import Asked, asked_from, fitted, profile_of
from qlora_planner.cli.train_finished import is_finished, tell_finished
from qlora_planner.cli.train_run import execute
from qlora_planner.cli.values import Output, card_asked, card_from, output_from
from qlora_planner.errors import InputError, MissingError, RefusedError, UnsureError
from qlora_planner.session import Session
from qlora_planner.session.this_card import ThisCard, check_packages, this_card_as
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.settings import REPORTERS, SCHEDULERS

if TYPE_CHECKING:
    from qlora_planner.runs.spec import LaunchSpec
    from qlora_planner.spec.model import ModelProfile


def _option(name: str, kind: Any, text: str, metavar: str = "N") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(f"--{name}", cls=SectionOption, type=kind, default=None, metavar=metavar, help=text)


@click.command("train", cls=Verb)
@click.argument("what", metavar="PLAN|MODEL|RUN")
@_option("output", str, "The run's own folder (runs/NAME of the model).", "DIR")
@click.option("--resume", cls=SectionOption, is_flag=True, help="Go on with the run in --output.")
@click.option("--yes", cls=SectionOption, is_flag=True, help="Start without asking, though it may not fit.")
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
@card_options()
@data_options(only=("data", "tokenizer", "bad_rows"))
@run_options()
@output_options()
def command(what: str, **given: Any) -> int:
    """Train, with trl's SFTTrainer in a process of its own: a PLAN as it is, a MODEL after planning it.

    The longest batch is tried first. When memory runs out, the run goes on one rung lower. Ctrl-C saves a checkpoint.
    """
    output = output_from(given)
    given["weights"] = given.pop("model")
    asked = asked_from(what, explicit_run_options(given), given)
    if is_finished(asked):
        return tell_finished(asked, output)
    if asked.device == "cpu" and given.get("cap"):
        raise InputError("--device cpu: --cap needs a card; leave it out")
    if not (asked.planned or given["yes"] or sys.stdin.isatty()):
        raise InputError("train asks before it starts what it planned, and nobody can answer here; --yes starts it")
    check_packages(asked.run)
    spec, profile, here, document = _prepared(asked, given, output)
    return execute(asked, spec, profile, here, document, given, output)


def _prepared(
    asked: Asked, given: Mapping[str, Any], output: Output
) -> tuple[LaunchSpec, ModelProfile | None, ThisCard | None, Mapping[str, Any]]:
    """Everything that can be known to be wrong before a process is started."""
    from qlora_planner.data.hub import rows_of
    from qlora_planner.runs.child.reporters import check_reporters
    from qlora_planner.runs.spec import LaunchSpec
    from qlora_planner.runs.weights import check_stored, weights_folder

    check_reporters(asked.settings.report_to)
    asked = replace(asked, data=rows_of(asked.data, output.warn))
    _check_data(asked, output)
    folder = weights_folder(asked.weights, output.warn)
    if note := check_stored(folder, asked.run, asked.model):
        output.warn(note)
    here = _place(given, output) if asked.device == "cuda" else None
    profile = profile_of(asked, output)
    run, document = _planned(asked, profile, here, given, output)
    spec = LaunchSpec(
        run=run,
        settings=asked.settings,
        model_id=_name(asked, folder),
        weights=str(folder.absolute()),
        tokenizer=asked.tokenizer,
        data=str(Path(asked.data).absolute()),
        bad_rows=asked.bad_rows,
        output=str(asked.folder.path.absolute()),
        device=asked.device,
        cap_bytes=None if here is None else here.cap_bytes,
        quantized=None if profile is None else _quantized(profile, run),
    )
    return spec, profile, here, document


def _place(given: Mapping[str, Any], output: Output) -> ThisCard:
    try:
        return this_card_as(Session(output.profiles, tell=output.warn), *card_asked(given))
    except MissingError as error:
        raise MissingError(f"{error}; or train on the CPU with --device cpu") from None


def _check_data(asked: Asked, output: Output) -> None:
    """Raises InputError for what cannot be trained on: of a file that is soon read, every row."""
    from qlora_planner import data
    from qlora_planner.data.files import find_files
    from qlora_planner.runs.dataset import IN_MEMORY_BYTES

    # Larger data is read by the child alone: its faults then come a little later.
    if sum(file.size_bytes for file in find_files(asked.data)) <= IN_MEMORY_BYTES:
        for _ in data.rows(asked.data, bad_rows=asked.bad_rows):
            pass


def _name(asked: Asked, folder: Path) -> str:
    """What the adapter names as its base: a Hub id as it is, a folder by its path, the same at every start."""
    known = None if asked.record is None else asked.record["model"]
    if known is not None and known["path"] == asked.weights:
        return str(known["id"])
    return str(folder.absolute()) if Path(asked.weights).exists() else asked.weights


def _quantized(profile: ModelProfile, run: RunConfig) -> int:
    from qlora_planner.memory.weights.static import is_quantized

    return sum(group.count for group in profile.tensors if not group.tied_with and is_quantized(group, run))


def _planned(
    asked: Asked,
    profile: ModelProfile | None,
    here: ThisCard | None,
    given: Mapping[str, Any],
    output: Output,
) -> tuple[RunConfig, Mapping[str, Any]]:
    """The run without unknowns, and the plan that plan.yaml will hold; a MODEL's plan is shown and asked about."""
    from qlora_planner.planner.plan import SCHEMA

    if not asked.planned and (here is not None or given.get("gpu") is not None):
        assert profile is not None
        return _plan(asked, profile, here, given, output)
    run = fitted(asked, output)
    if profile is None:
        return run, asked.plan or {"schema": SCHEMA, "model": {"id": asked.model}, "gpu": None, "run": run.to_dict()}
    from qlora_planner.memory.options.resolve import resolve

    found = resolve(profile, run, None if here is None else here.gpu)
    refused = [problem for problem in found.problems if problem.blocking]
    if refused:
        raise RefusedError(f"{refused[0].message}; use {refused[0].fix}")
    head = asked.plan or {"schema": SCHEMA, "model": {"id": profile.id}, "gpu": None}
    if not asked.planned:
        from qlora_planner.report.parts.labels import recipe

        _ask(f"{profile.id} on the CPU, which nothing is planned for: {recipe(found.run)}", given)
    return found.run, {**head, "run": found.run.to_dict()}


def _plan(
    asked: Asked, profile: ModelProfile, here: ThisCard | None, given: Mapping[str, Any], output: Output
) -> tuple[RunConfig, Mapping[str, Any]]:
    """What `qlora-plan plan --data` recommends, for the longest batch of this data."""
    from qlora_planner.cli.plan_files import with_folder
    from qlora_planner.report.plan import render_plan
    from qlora_planner.session import plan

    card = card_from(given, output, required=True)
    assert card is not None
    found = plan(
        profile, card.gpu, asked.run, reserve_bytes=card.reserve_bytes, profiles=output.profiles, tell=output.warn,
        fixed=asked.explicit, data=summary_from(given, asked.weights, output),
        cap_bytes=card.cap_bytes if here is None else here.cap_bytes,
    )  # fmt: skip
    found = with_folder(found, asked.model)
    if found.estimate.verdict in ("does-not-fit", "will-not-run"):
        reasons = found.estimate.fit.reasons if found.estimate.fit else ()
        raise RefusedError(
            f"{profile.id} {found.estimate.verdict} on {card.gpu.label}: {'; '.join(reasons) or 'too large'}"
        )
    if found.estimate.verdict == "cannot-say" and not given["yes"]:
        reasons = found.estimate.fit.reasons if found.estimate.fit else ()
        raise UnsureError(
            f"cannot say whether {profile.id} fits {card.gpu.label}: {'; '.join(reasons)}; --yes tries it"
        )
    _ask(render_plan(found, asked.explicit, card.asked, output.theme), given)
    return found.run, found.to_dict()


def _ask(shown: str, given: Mapping[str, Any]) -> None:
    """Show what will be run, and ask once. Raises click's Abort for a no."""
    if not given["quiet"]:
        click.echo(shown, err=True)
    if not given["yes"]:
        click.confirm("Start it?", default=True, abort=True, err=True)
