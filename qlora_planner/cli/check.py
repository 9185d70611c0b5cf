"""check: whether a plan file, or a config of axolotl, LLaMA-Factory or TRL, fits a card, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from qlora_planner.cli.exits import exit_code
from qlora_planner.cli.loading import profile_for
from qlora_planner.cli.options import SectionOption, Verb, card_options, output_options
from qlora_planner.cli.streams import answer, answer_json
from qlora_planner.cli.values import Card, Output, card_from, output_from
from qlora_planner.errors import MissingError

if TYPE_CHECKING:
    from qlora_planner.exchange.parsed_config import Reading
    from qlora_planner.exchange.suggestions import Remedy
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.spec.model import ModelProfile
    from qlora_planner.spec.run import RunConfig

SCHEMA = "qlora-plan/check/1"
KINDS = ("plan", "axolotl", "llama-factory", "trl")


@click.command("check", cls=Verb)
@click.argument("file")
@click.option("--format", "kind", cls=SectionOption, type=click.Choice(KINDS), help="What FILE is (its keys tell).")
@click.option("--model", cls=SectionOption, metavar="MODEL", help="Take this model in place of the file's.")
@card_options()
@output_options()
def command(file: str, kind: str | None, model: str | None, **given: Any) -> int:
    """Whether FILE, a plan or a config of axolotl, LLaMA-Factory or TRL, fits; and the smallest change that makes it.

    Without --gpu a plan is checked against its own card. Exits with 1 when it does not fit or will not run, with 5 when
    the file asks for something that is not modelled and could change that.
    """
    output = output_from(given)
    from qlora_planner.exchange.configs import read_config

    reading = read_config(file, kind)
    card = _card(reading, given, output)
    profile = profile_for(model or reading.model_id, output)
    _warn(reading, output)
    estimates = Estimates(profile, card, output)
    reading, found = judged(reading, estimates)
    fixes = fixes_for(found, estimates)
    if output.json:
        answer_json(_document(file, reading, found, fixes))
    else:
        from qlora_planner.exchange.configs import keys_of
        from qlora_planner.report.check import render_check

        shown = [(one, keys_of(reading.format, one.changes)) for one in fixes]
        answer(render_check(found, card.gpu, reading, shown, output.theme, explain=output.explain))
    return exit_code(found)


def _card(reading: Reading, given: dict[str, Any], output: Output) -> Card:
    """--gpu, else the card that a plan was made for, else the one in this machine."""
    if given.get("gpu") is None and reading.gpu is not None:
        output.warn(f"no --gpu given: taking the plan's own card, {reading.gpu['name']}")
        given = {**given, "gpu": reading.gpu["name"]}
    card = card_from(given, output, required=True)
    assert card is not None
    return card


def _warn(reading: Reading, output: Output) -> None:
    """What the figures leave out, for whoever reads stderr alone; the answer itself gives the reasons."""
    if reading.unknown:
        output.warn(f"{reading.format} keys that are not known here, so not in the estimate: {_list(reading.unknown)}")
    if reading.not_modelled:
        output.warn(f"not modelled, so not in the estimate: {_list(reading.not_modelled)}")


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def judged(reading: Reading, estimates: Estimates) -> tuple[Reading, MemoryEstimate]:
    """What the file means for this model, and its memory, qualified by what the figures leave out of it."""
    from qlora_planner.exchange.meant import meant
    from qlora_planner.memory.unmodelled.qualified import qualified

    reading = meant(reading, estimates.profile)
    return reading, estimates.card.judged(qualified(estimates.full(reading.run), reading.unmodelled))


class Estimates:
    """Estimates of one model on one card: in full, and quickly by what is at hand."""

    def __init__(self, profile: ModelProfile, card: Card, output: Output) -> None:
        self.profile, self.card, self.output = profile, card, output
        self.traces = True
        self.tell: Callable[[str], None] = output.warn

    def full(self, run: RunConfig) -> MemoryEstimate:
        """From the run's trace; where it can neither be found nor made, by closed forms, which is said once."""
        from qlora_planner.session import estimate

        if not self.traces:
            return self.quick(run)
        try:
            return estimate(
                self.profile,
                run,
                self.card.gpu,
                reserve_bytes=self.card.reserve_bytes,
                cap_bytes=self.card.cap_bytes,
                profiles=self.output.profiles,
                tell=self.tell,
            )
        except MissingError as error:
            self.output.warn(f"{error}; this answer is by closed forms")
            self.traces = False
            return self.quick(run)

    def quick(self, run: RunConfig) -> MemoryEstimate:
        """From a trace that ships, else by closed forms: milliseconds."""
        from qlora_planner import session
        from qlora_planner.memory.estimate import estimate

        profiles = self.output.profiles
        return estimate(
            self.profile,
            run,
            self.card.gpu,
            reserve_bytes=self.card.reserve_bytes,
            cap_bytes=self.card.cap_bytes,
            tape=session.tape_for(self.profile, run, self.card.gpu, profiles=profiles, stored_only=True),
            calibration=session.calibration(profiles),
        )

    def surely(self, found: MemoryEstimate) -> Callable[[int], bool]:
        """Whether a run that is known as well as `found` fits surely if it works from so many bytes on."""
        from qlora_planner import session
        from qlora_planner.memory.verdict import FITS_AT_MOST, context_of, distribution, with_libraries

        assert found.fit is not None
        usable = found.fit.usable_bytes
        calibration = session.calibration(self.output.profiles)
        context = with_libraries(context_of(self.card.gpu, calibration), found.run)

        def fits(floor_bytes: int) -> bool:
            return distribution(floor_bytes, found.method, context, calibration).chance_above(usable) <= FITS_AT_MOST

        return fits


def fixes_for(found: MemoryEstimate, estimates: Estimates) -> list[Remedy]:
    """What would make it fit; nothing for what fits surely, or is refused for another reason than its memory."""
    if found.verdict not in ("tight", "does-not-fit"):
        return []
    from qlora_planner.evidence.calibration import TRACED
    from qlora_planner.exchange.suggestions import remedies

    if found.method != TRACED:
        return remedies(found.run, found, estimates.quick, estimates.quick, estimates.surely(found))
    estimates.tell("looking for the smallest change that fits; each try may be traced, a quarter of a minute")
    estimates.tell = _silent
    return remedies(found.run, found, estimates.full, estimates.quick, estimates.surely(found))


def _silent(_text: str) -> None:
    """The same word again for each try would only scroll the answer away."""


def _document(file: str, reading: Reading, found: MemoryEstimate, fixes: list[Remedy]) -> dict[str, Any]:
    from qlora_planner.exchange.configs import keys_of

    rows = [{**one.to_dict(), "keys": keys_of(reading.format, one.changes)} for one in fixes]
    return {
        "schema": SCHEMA,
        "file": file,
        "format": reading.format,
        "model": dict(found.model),
        "run": found.run.to_dict(),
        "estimate": found.to_dict(),
        "fix": {"smallest": rows[0], "runner_up": rows[1] if len(rows) > 1 else None} if rows else None,
        "keys": reading.keys_to_dict(),
        "notes": list(reading.notes),
    }
