"""Whether a plan file or another tool's config fits a card, and the smallest changes that make it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qlora_planner.catalog.trainers import run_document
from qlora_planner.errors import MissingError
from qlora_planner.record import record
from qlora_planner.text import listed

if TYPE_CHECKING:
    from qlora_planner.exchange.parsed_config import Reading
    from qlora_planner.exchange.suggestions import Remedy
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.memory.records import Unmodelled
    from qlora_planner.session.model_on_card import ModelOnCard
    from qlora_planner.spec.model import ModelProfile
    from qlora_planner.spec.run import RunConfig

SCHEMA = "qlora-plan/check/1"
# Tools whose files can ask for fused experts in 4 bits.
STORES_EXPERTS = ("axolotl",)


@record
class Check:
    """A file as it was read, the memory of what it means, and changes by which it fits, the least harmful first.

    `run` is what the file asks for, resolved; another run may stand in for it in `estimate`.
    """

    file: str
    reading: Reading
    run: RunConfig
    estimate: MemoryEstimate
    fixes: tuple[Remedy, ...]

    def keys_of(self, fix: Remedy) -> dict[str, Any]:
        """What to write into the file for a change."""
        from qlora_planner.exchange.configs import keys_of

        return keys_of(self.reading.format, fix.changes)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `qlora-plan/check/1`."""
        rows = [{**fix.to_dict(), "keys": self.keys_of(fix)} for fix in self.fixes]
        return {
            "schema": SCHEMA,
            "file": self.file,
            "format": self.reading.format,
            "model": self.estimate.model.to_dict(),
            "run": run_document(self.run),
            "estimate": self.estimate.to_dict(),
            "fix": {"smallest": rows[0], "runner_up": rows[1] if len(rows) > 1 else None} if rows else None,
            "keys": self.reading.keys_to_dict(),
            "notes": list(self.reading.notes),
            **({} if self.estimate.run.parallel is None else {"decided": self._decided()}),
        }

    def _decided(self) -> dict[str, Any]:
        """Which key decided what of how several cards share the run, by the option."""
        sharing = self.reading.sharing
        decided = () if sharing is None else sharing.decided
        return {item.option: {"value": item.value, "key": item.key} for item in decided}


def check_reading(file: str | os.PathLike[str], reading: Reading, opened: ModelOnCard) -> Check:
    """The answer for a file that was read, of which `opened` is the model on the card."""
    from qlora_planner.exchange.several_cards.on_cards import on_cards
    from qlora_planner.memory.options.resolve import resolve

    reading = on_cards(reading, opened.budget.world)
    _tell_left_out(reading, opened)
    if opened.card is not None and reading.sharing is not None and reading.sharing.communicators > 1:
        card = replace(opened.card, communicators=reading.sharing.communicators)
        opened = replace(opened, card=card, _known={}, _played={})
    estimates = Estimates(opened)
    reading, estimate = judged(reading, estimates)
    own = reading.stands_for
    run = estimate.run if own is None else resolve(opened.profile_for(own), own, opened.gpu).run
    fixes = tuple(fixes_for(estimate, estimates, reading.format))
    return Check(file=os.fspath(file), reading=reading, run=run, estimate=estimate, fixes=fixes)


def _tell_left_out(reading: Reading, opened: ModelOnCard) -> None:
    """What the figures leave out, for whoever reads notes alone; the answer itself gives the reasons."""
    tell = opened.session.tell
    if reading.unknown:
        tell(f"{reading.format} keys that are not known here, so not in the estimate: {listed(reading.unknown)}")
    if reading.not_modelled:
        tell(f"not modelled, so not in the estimate: {listed(reading.not_modelled)}")


def judged(reading: Reading, estimates: Estimates) -> tuple[Reading, MemoryEstimate]:
    """What the file means for this model, and its memory, qualified by what the figures leave out of it."""
    from qlora_planner.exchange.meant import meant, standing_in
    from qlora_planner.memory.unmodelled.qualified import qualified
    from qlora_planner.session.towers import without_tower

    reading = meant(without_tower(reading, estimates.opened), estimates.profile)
    estimate = None if reading.stand_in is None else estimates.traced(reading.run)
    if estimate is None:
        reading = standing_in(reading)
        estimate = estimates.full(reading.run)
    things = (*reading.unmodelled, *(beyond.of(estimate, estimates.profile) for beyond in reading.beyond))
    things = (*things, *_between(reading, estimate, estimates), *_while_preparing(reading, estimate, estimates))
    if estimate.run.parallel is not None or (reading.sharing is not None and reading.sharing.strategy is None):
        estimate, beyond = _shared(reading, estimate, estimates.profile)
        things = (*things, *beyond)
    return reading, qualified(estimate, things)


def _shared(
    reading: Reading, estimate: MemoryEstimate, profile: ModelProfile
) -> tuple[MemoryEstimate, tuple[Unmodelled, ...]]:
    """The estimate with what the file's own settings for several cards run into, and what it leaves out of them."""
    from qlora_planner.memory.verdict import with_problems

    sharing = reading.sharing
    if sharing is None:
        return with_problems(estimate, (), reading.settled), ()
    without = {*reading.settled, *(problem.code for problem in sharing.problems)}
    without |= {"full-state-dict"} if sharing.saves_whole else set()
    things = tuple(beyond.of(estimate, profile) for beyond in sharing.beyond)
    return with_problems(estimate, sharing.problems, without), things


def _between(reading: Reading, estimate: MemoryEstimate, estimates: Estimates) -> Iterator[Unmodelled]:
    """What takes more than the run, and at the most as much as another one, as a part of the run's figures."""
    from qlora_planner.memory.records import Unmodelled as Thing

    for row in reading.between:
        least, most = (estimates.quick(run) for run in (reading.run, reading.run.with_(**row.changes)))
        more_bytes = max(most.floor_bytes - least.floor_bytes, most.peak.device_bytes - least.peak.device_bytes, 0)
        part = round(more_bytes / max(estimate.floor_bytes, 1), 4)
        yield Thing(key=row.key, what=row.what, direction="up", at_most=part)


def _while_preparing(reading: Reading, estimate: MemoryEstimate, estimates: Estimates) -> tuple[Unmodelled, ...]:
    """What a tool holds for a moment before adapters are added, where that is more than all that follows."""
    from qlora_planner.memory.records import Unmodelled as Thing

    if reading.casts_while_preparing is None:
        return ()
    cast = estimates.quick(reading.run.with_(upcast=True, loss_kernel=None))
    peak = next((phase.device_bytes or 0 for phase in cast.phases if phase.name == "prepare"), 0)
    above = peak / max(estimate.peak.device_bytes, 1) - 1
    if above <= 0:
        return ()
    return (Thing(key="preparing", what=reading.casts_while_preparing, direction="up", at_most=round(above, 4)),)


class Estimates:
    """Estimates of one model on one card: in full, and quickly by what is at hand. None says that one card is meant."""

    def __init__(self, opened: ModelOnCard) -> None:
        self.opened = opened
        self.traces = True

    @property
    def profile(self) -> ModelProfile:
        """The model."""
        return self.opened.profile

    def full(self, run: RunConfig) -> MemoryEstimate:
        """From the run's trace; where it can neither be found nor made, by formulas, which is said once."""
        if not self.traces:
            return self.quick(run)
        try:
            return self.opened.estimate(run)
        except MissingError as error:
            self.opened.session.tell(f"{error}; this answer is by formulas, less exact")
            self.traces = False
            return self.quick(run)

    def traced(self, run: RunConfig) -> MemoryEstimate | None:
        """From the run's own trace, one that ships or is made; None where there is none."""
        from qlora_planner.catalog.losses import PACKAGES
        from qlora_planner.evidence.calibration import TRACED
        from qlora_planner.session.packages import missing_packages

        kernel = PACKAGES.get(run.loss_kernel or "")
        missing = kernel is not None and missing_packages((kernel, "triton"))
        if missing and self.quick(run).method != TRACED:
            return None
        try:
            estimate = self.opened.estimate(run)
        except MissingError:
            return None
        return estimate if estimate.method == TRACED else None

    def quick(self, run: RunConfig) -> MemoryEstimate:
        """From a trace that ships, else by closed forms: milliseconds."""
        from qlora_planner.memory.estimate import estimate_within
        from qlora_planner.session.traces import tape_for

        opened, session = self.opened, self.opened.session
        profile = opened.profile_for(run)
        tape = tape_for(profile, run, opened.gpu, profiles=session.profiles, stored_only=True)
        return estimate_within(opened.budget, profile, run, tape=tape)

    def surely(self, estimate: MemoryEstimate) -> Callable[[int], bool]:
        """Whether a run that is known as well as `estimate` fits surely if it works from so many bytes on."""
        assert estimate.fit is not None
        usable_bytes, budget = estimate.fit.usable_bytes, self.opened.budget.for_run(estimate.run)

        def fits(floor_bytes: int) -> bool:
            return budget.distribution(floor_bytes, estimate.method).chance_above(usable_bytes) <= budget.fits_at_most

        return fits


def fixes_for(estimate: MemoryEstimate, estimates: Estimates, tool: str = "") -> list[Remedy]:
    """What would make it fit, as far as `tool` can say it; nothing for what fits surely, or is refused for another
    reason than its memory."""
    if estimate.verdict not in ("tight", "does-not-fit"):
        return []
    from qlora_planner.evidence.calibration import TRACED
    from qlora_planner.exchange.suggestions import remedies
    from qlora_planner.memory.weights.placement import fuses_experts
    from qlora_planner.session.packages import can_trace

    surely = estimates.surely(estimate)
    experts = tool in STORES_EXPERTS and fuses_experts(estimates.profile)
    if estimate.method != TRACED:
        return remedies(estimate.run, estimate, estimates.quick, estimates.quick, surely, experts=experts)
    session = estimates.opened.session
    if can_trace():
        session.tell("looking for the smallest change that fits; each try may be traced, a quarter of a minute")
    with session.silent():  # the same word again for each try would only scroll the answer away
        return remedies(estimate.run, estimate, estimates.full, estimates.quick, surely, experts=experts)
