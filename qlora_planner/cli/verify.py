"""verify: run real steps of this run with random weights; predicted beside measured."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qlora_planner.cli import events
from qlora_planner.cli.loading import profile_for
from qlora_planner.cli.options import (
    SectionOption,
    Verb,
    card_options,
    explicit_run_options,
    output_options,
    run_options,
)
from qlora_planner.cli.progress import watching
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.values import Output, output_from
from qlora_planner.cli.verify_place import Place, check_packages, check_room, place_of
from qlora_planner.errors import InputError, MissingError
from qlora_planner.spec.run import RunConfig
from qlora_planner.units import format_mib

if TYPE_CHECKING:
    from qlora_planner.evidence import Measurement
    from qlora_planner.measure.floor import Floor
    from qlora_planner.measure.spec import ChildSpec
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.spec.model import ModelProfile

SCHEMA = "qlora-plan/verification/1"
DEVICES = ("cuda", "cpu")
_EXIT = {"ok": 0, "out-of-memory": 1, "error": 4, "interrupted": 130}

# Made up in a quarter of a minute.
_MOST_TOKENS = 1 << 24


@click.command("verify", cls=Verb)
@click.argument("model", metavar="MODEL|PLAN")
@click.option("--device", cls=SectionOption, type=click.Choice(DEVICES), default="cuda", help="Where (cuda).")
@click.option("--steps", cls=SectionOption, type=click.IntRange(1, 1000), default=3, help="Optimizer steps (3).")
@click.option("--floor", cls=SectionOption, is_flag=True, help="Find the least limit on torch that works; more runs.")
@click.option(
    "--save", cls=SectionOption, is_flag=True, help="Write the evidence into measurements/ of --profiles too."
)
@card_options()
@run_options()
@output_options()
def command(model: str, device: str, steps: int, floor: bool, save: bool, **given: Any) -> int:
    """Build this very run with random weights, take real steps in a process of its own, and compare.

    --gpu of a smaller card makes this one behave like it. Exits with 1 when it runs out of memory.
    """
    output = output_from(given)
    if device == "cpu" and (floor or given.get("gpu") or given.get("cap")):
        raise InputError("--device cpu: --gpu, --cap and --floor need a card; leave them out")
    named, run = _asked(model, explicit_run_options(given))
    _check_amount(run, steps)
    check_packages(run)
    profile = profile_for(named, output)
    place = None if device == "cpu" else place_of(given, output)
    spec, predicted = _specification(named, profile, run, place, output, device=device, steps=steps)
    if place is not None:
        check_room(place, predicted, output)
    measured = _measure(spec, place, output)
    _tell_compared(measured)
    found = _floor(spec, measured, predicted, output) if floor and measured.outcome == "ok" else None
    tried = () if found is None else found.tries
    kept = _keep(measured, output, save=save)
    for _, one in tried:
        _keep(one, output, save=save)
    _show(measured, found, kept, output)
    return _EXIT[measured.outcome]


def _asked(model: str, explicit: dict[str, Any]) -> tuple[str, RunConfig]:
    """The model and the run: of a plan file where MODEL is one, with what was typed in place of what it says."""
    path = Path(model)
    if path.suffix.lower() not in (".yaml", ".yml", ".json") or not path.is_file() or path.name == "config.json":
        return model, RunConfig(**explicit)
    from qlora_planner.exchange.files import read_yaml
    from qlora_planner.exchange.plan_file import is_plan, plan_of

    raw = read_yaml(path)
    if not is_plan(raw):
        return model, RunConfig(**explicit)  # a config.json under another name
    plan = plan_of(raw, str(path))
    return plan.model_id, plan.run.with_(**explicit)


def _check_amount(run: RunConfig, steps: int) -> None:
    """Raises InputError for more tokens than are made up in a minute: memory does not rise with them."""
    tokens = run.tokens * run.grad_accum * steps
    if tokens > _MOST_TOKENS:
        raise InputError(
            f"verify: {tokens:,} tokens are more than the {_MOST_TOKENS:,} that it makes up; fewer --steps or a smaller"
            " --grad-accum take the same memory"
        )


def _specification(
    named: str,
    profile: ModelProfile,
    run: RunConfig,
    place: Place | None,
    output: Output,
    *,
    device: str,
    steps: int,
) -> tuple[ChildSpec, MemoryEstimate]:
    """What the child is told, and what is predicted for it.

    Raises MissingError for a run that this card or stack refuses.
    """
    from qlora_planner import session
    from qlora_planner.measure.spec import ChildSpec

    raw = session.config_of(profile, output.profiles)
    config = deepcopy(dict(raw.config))  # transformers completes nested parts of a config in place
    if profile.text_part_of is not None:
        from qlora_planner.profiling.text_part import text_part

        output.warn(f"{profile.id} takes images or sound too: its text part alone is measured")
        config = dict(text_part(config, raw.id)[0])
    folder = Path(named)
    real = device == "cuda" and profile.text_part_of is None and folder.is_dir() and any(folder.glob("*.safetensors"))
    if device == "cpu":
        from qlora_planner.sources.configs import RawConfig, config_sha256
        from qlora_planner.train.toy import toy_config

        small = toy_config(deepcopy(config))
        toy = RawConfig(id=raw.id, config=small, sha256=config_sha256(small), origin="toy")
        profile = session.profile_of(toy, warn=output.warn)
    predicted = session.estimate(
        profile,
        run,
        place.gpu if place else None,
        reserve_bytes=place.others_bytes if place else 0,
        cap_bytes=place.cap_bytes if place else None,
        profiles=output.profiles,
        tell=output.warn,
    )
    refused = [problem for problem in predicted.problems if problem.blocking]
    if refused:
        raise MissingError(f"{refused[0].message}; use {refused[0].fix}")
    spec = ChildSpec(
        run=predicted.run,
        model_id=raw.id,
        config=None if real else config,
        model_dir=str(folder) if real else None,
        config_sha256=raw.sha256,
        device=device,
        cap_bytes=place.cap_bytes if place else None,
        steps=steps,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        predicted=predicted.to_dict(),
    )
    return spec, predicted


def _measure(spec: ChildSpec, place: Place | None, output: Output) -> Measurement:
    from qlora_planner.measure.verify import Progress, verify

    whole = None if place is None else place.gpu.memory_bytes
    events.tell("predicted", {"estimate": spec.predicted})
    with watching(spec.model_id, whole, quiet=output.quiet) as tell:

        def heard(told: Progress) -> None:
            events.pass_on(told)
            tell(told)

        return verify(spec, tell=heard)


def _tell_compared(measured: Measurement) -> None:
    """Predicted beside measured, for whoever watches from outside."""
    from qlora_planner.report.comparison import to_document

    events.tell("compared", to_document(measured))


def _floor(spec: ChildSpec, measured: Measurement, predicted: MemoryEstimate, output: Output) -> Floor | None:
    from qlora_planner.measure.floor import find_floor

    reserved = [phase.reserved_bytes for phase in measured.phases.values() if phase.reserved_bytes is not None]
    if not reserved:
        output.warn("--floor: torch told nothing of what it reserved")
        return None
    output.warn("looking for the least limit that works: about eight more runs")
    return find_floor(
        spec,
        min(predicted.static.after_load, max(reserved)),
        max(reserved),
        tell=lambda cap, outcome: output.warn(f"under {format_mib(cap)}: {outcome}"),
    )


def _keep(measured: Measurement, output: Output, *, save: bool) -> str | None:
    """Put the evidence where `calibrate` finds it; what was interrupted says nothing."""
    from qlora_planner.sources.evidence import append, shared_path
    from qlora_planner.sources.locations import evidence_path, repository_profiles

    if measured.outcome == "interrupted":
        return None
    path = evidence_path()
    append(path, measured)
    if save:
        root = Path(output.profiles) if output.profiles else repository_profiles()
        if root is None:
            raise InputError("--save: name the folder with --profiles DIR; this is no checkout of the repository")
        append(shared_path(root, measured), measured)
    return str(path)


def _show(measured: Measurement, floor: Floor | None, kept: str | None, output: Output) -> None:
    works = None if floor is None else floor.works_bytes
    if output.json:
        from qlora_planner.report.comparison import to_document

        answer_json(
            {
                "schema": SCHEMA,
                "measurement": measured.to_dict(),
                "comparison": to_document(measured),
                "floor": None if floor is None else {"works_bytes": works, "fails_bytes": floor.fails_bytes},
            }
        )
        return
    from qlora_planner.report.verify import render_verification

    answer(render_verification(measured, output.theme, floor_bytes=works, kept=kept))
