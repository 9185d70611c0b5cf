"""What the explorer knows, without a terminal: a card, a model on it, and the figures of any of its runs.

Nothing is traced here and torch is never imported: a run is played from a shipped trace, or closed forms stand in.
Every method may run in a thread of its own; results are remembered by run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from qlora_planner.errors import InputError, MissingError, PlannerError
from qlora_planner.session.model_on_card import ModelOnCard
from qlora_planner.spec.run import RunConfig

if TYPE_CHECKING:
    from qlora_planner.planner.around.grid import Frontier as Frontier  # the screens know the core alone
    from qlora_planner.planner.plan import Plan
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.sources.names import Names
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


@dataclass(kw_only=True, eq=False)
class Subject(ModelOnCard):
    """One model on one card; `model` is what names it again."""

    model: str
    card: PlannedCard

    @classmethod
    def of(cls, model: str, card: PlannedCard, profiles: str | None = None) -> Subject:
        """Read a model's profile and what is measured. Raises as `session.load_model` does."""
        from qlora_planner.session import Session

        session = Session(profiles, tell=_unheard, build="never", stored_only=True)
        profile = session.model(model)
        return cls(
            session=session, profile=profile, card=card, model=profile.id if profile.source == "catalogue" else model
        )

    @property
    def reads_images(self) -> bool:
        """Whether the model reads images in a way that is known."""
        from qlora_planner.catalog.images import IMAGE_READERS

        return self.profile.text_part_of in IMAGE_READERS

    def plan_of(self, run: RunConfig) -> Plan:
        """The plan whose run is exactly this one. Raises InputError for one that does not fit."""
        from qlora_planner.spec.run import RUN_FIELDS

        plan = self.plan(run, dict.fromkeys(RUN_FIELDS))
        if plan.estimate.verdict == "does-not-fit":
            raise InputError("this run does not fit: r takes one that does")
        return plan


def fault_words(error: PlannerError) -> str:
    """A fault as one line for the screen."""
    from qlora_planner.text import plain

    return plain(" ".join(str(error).split()))


def _unheard(_text: str) -> None:
    """Oddities of a catalogue name are no news on the screen."""
