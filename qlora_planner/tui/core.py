"""What the explorer knows, without a terminal: a card, a model on it, and the figures of any of its runs.

Nothing is traced here and torch is never imported: a run is played from a shipped trace, or closed forms stand in.
Every method may run in a thread of its own; results are remembered by run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError, MissingError, PlannerError
from qlora_planner.session.model_on_card import Frontier as Frontier  # the screens know the core alone
from qlora_planner.session.model_on_card import ModelOnCard
from qlora_planner.spec.run import RunConfig

if TYPE_CHECKING:
    from qlora_planner.memory import MemoryEstimate
    from qlora_planner.planner.plan import Plan
    from qlora_planner.planner.records import Price
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.sources.names import Names
    from qlora_planner.spec.model import ModelProfile
    from qlora_planner.tui.widgets.rows import ModelRow

ASSUMED_CARD = "24GB"


def card_of(text: str | None, profiles: str | None = None) -> PlannedCard:
    """The card of `text`; for None the one in this machine, else 24GB, which is then said.

    Raises InputError for a card that means nothing, MissingError for `local` without a card.
    """
    from qlora_planner.session import Session, cards

    session = Session(profiles)
    wanted = (text or "").strip()
    if wanted and not cards.is_local(wanted):
        # As it was typed: the figures of `2xrtx-3090` are not those of one.
        return replace(cards.card_of(session, wanted), asked=wanted)
    try:
        return replace(cards.card_of(session, cards.LOCAL), note="the card in this machine")
    except MissingError:
        if wanted:
            raise
        note = f"no card is found here: {ASSUMED_CARD} is assumed; g picks another"
        return replace(cards.card_of(session, ASSUMED_CARD), note=note)


def models_named(text: str, profiles: str | None) -> Callable[[str], bool]:
    """Which models of the catalogue `text` names, by the words that the command line takes for names."""
    return _names(profiles).searched(text)


@cache
def _names(profiles: str | None) -> Names:
    from qlora_planner.sources.catalogue import ModelCatalogue
    from qlora_planner.sources.locations import models_dirs
    from qlora_planner.sources.names import Names

    return Names(ModelCatalogue(models_dirs(profiles)))


def card_names(profiles: str | None = None) -> tuple[str, ...]:
    """What the card picker offers: `local`, the sizes people say, and every card of the catalogue."""
    from qlora_planner.catalog.gpus import GpuCatalogue
    from qlora_planner.sources.locations import gpus_dirs

    sizes = ("8GB", "12GB", "16GB", "24GB", "32GB", "48GB", "80GB")
    return ("local", *sizes, *GpuCatalogue(gpus_dirs(profiles)).names())


def start_run(row: ModelRow) -> RunConfig:
    """The run that a model is opened with: the one recommended on the card, else the survey's own."""
    return RunConfig() if row.options is None else RunConfig(**dict(row.options))


@dataclass(slots=True, kw_only=True)
class Subject:
    """One model on one card; `model` is what names it again."""

    model: str
    profile: ModelProfile
    card: PlannedCard
    opened: ModelOnCard

    @classmethod
    def of(cls, model: str, card: PlannedCard, profiles: str | None = None) -> Subject:
        """Read a model's profile and what is measured. Raises as `session.load_model` does."""
        from qlora_planner.session import Session

        session = Session(profiles, tell=_unheard, build="never", stored_only=True)
        opened = session.on(card).open(model)
        named = opened.profile.id if opened.profile.source == "catalogue" else model
        return cls(model=named, profile=opened.profile, card=card, opened=opened)

    @property
    def model_limit(self) -> int | None:
        """Tokens that the model was trained for."""
        return self.opened.model_limit

    def known(self, run: RunConfig) -> MemoryEstimate | None:
        """The estimate of a run that was worked out before."""
        return self.opened.known(run)

    def estimate(self, run: RunConfig, widths: Sequence[Sequence[int]] = ()) -> MemoryEstimate:
        """What `qlora-plan estimate` answers where nothing new is traced, or with `widths` of a dataset's batches what
        `plan --data` does. Raises InputError as they do."""
        return self.opened.estimate(run, widths)

    def refusal(self, run: RunConfig) -> str | None:
        """Why a run cannot work, in milliseconds: what is contradictory, and what the stack refuses. None: it can."""
        return self.opened.refusal(run)

    def plan(self, run: RunConfig | None = None, fixed: Mapping[str, Any] | None = None) -> Plan:
        """The recommended run, as `qlora-plan MODEL --gpu` has it where nothing new is traced."""
        return self.opened.plan(run, fixed or {})

    def plan_of(self, run: RunConfig) -> Plan:
        """The plan whose run is exactly this one. Raises InputError where a plan would change it, as for one that
        does not fit."""
        from qlora_planner.spec.run import RUN_FIELDS

        resolved = self.estimate(run).run
        plan = self.plan(run, dict.fromkeys(RUN_FIELDS))
        if plan.run != resolved:
            raise InputError("this run does not fit, so a plan file would hold another one; r takes a run that fits")
        return plan

    def prices(self, run: RunConfig) -> list[Price]:
        """A row per knob: see planner.neighbours. Raises InputError for a run that the stack refuses."""
        return self.opened.prices(run)

    def frontier(self, run: RunConfig) -> Frontier:
        """The grid around a run. Raises InputError for a run that the stack refuses."""
        return self.opened.frontier(run)


def fault_words(error: PlannerError) -> str:
    """A fault as one line for the screen."""
    from qlora_planner.text import plain

    return plain(" ".join(str(error).split()))


def _unheard(_text: str) -> None:
    """Oddities of a catalogue name are no news on the screen."""
