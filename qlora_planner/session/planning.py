"""What a plan is asked for beside a run: the card where it is cheapest, and the data it is for."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_planner.errors import InputError, NothingFitsError
from qlora_planner.session import packages
from qlora_planner.session.cards import PlannedCard
from qlora_planner.session.data import DataSource, summary_of
from qlora_planner.session.traces import sweep_for

if TYPE_CHECKING:
    from qlora_planner.data.batches.summary import DataSummary
    from qlora_planner.session.session import Session
    from qlora_planner.spec.model import ModelProfile
    from qlora_planner.spec.run import RunConfig

CHEAPEST = "cheapest"


def cheapest_card(
    session: Session, profile: ModelProfile, run: RunConfig, fixed: Collection[str] | None, card: PlannedCard | None
) -> PlannedCard:
    """The card with a price on which a token of the best run costs least: `card`, or for None of the whole catalogue.

    Raises InputError for a card without a price, NothingFitsError where no card with a known price holds it.
    """
    from qlora_planner.planner.gpus.cheapest import cheapest, priced

    if card is not None:
        if not priced(card.gpu):
            raise InputError(
                f"--objective cheapest: {card.asked} is no card with a known price and speed; see `qlora-plan gpus`"
            )
        return card
    sweep = sweep_for(profile, profiles=session.profiles, named=run.stack)
    untraced = not session.stored_only and packages.can_trace()
    gpu = cheapest(profile, run, fixed, session.gpus.all(), sweep, session.calibration, untraced=untraced)
    if gpu is None:
        as_typed = " as asked" if fixed else ""
        raise NothingFitsError(
            f"--objective cheapest: {profile.id} fits{as_typed} on no card with a known price; see `qlora-plan gpus`"
        )
    return PlannedCard(gpu=gpu, asked=gpu.name, risk=session.risk)


def check_batch(given: Mapping[str, Any], effective_batch: int | None, cards: int = 1) -> None:
    """Raises InputError where the sequences of an optimizer step are said twice, or are no multiple of the batch."""
    batch = given.get("batch_size")
    if effective_batch is not None and "grad_accum" in given:
        raise InputError("--effective-batch and --grad-accum say the same thing twice: leave one out")
    if effective_batch is not None and effective_batch % cards:
        raise InputError(f"--effective-batch {effective_batch} is no multiple of {cards} cards")
    if effective_batch is not None and batch is not None and effective_batch // cards % batch:
        on_cards = "" if cards == 1 else f" on {cards} cards"
        raise InputError(f"--effective-batch {effective_batch} is no multiple of --batch-size {batch}{on_cards}")


def data_of(
    session: Session, data: DataSummary | DataSource | str | os.PathLike[str] | None, model: str, **how: Any
) -> DataSummary | None:
    """The lengths of a dataset that is named by a path, a Hub id or a DataSource, or is counted already.

    `model` is a folder or the Hub id whose tokenizer counts, `how` are the other fields of a DataSource that is named
    by its path. Raises as `data.summarise` does.
    """
    if data is None:
        return None
    if isinstance(data, (str, os.PathLike)):
        data = DataSource(path=os.fspath(data), **how)
    return summary_of(data, model, tell=session.tell) if isinstance(data, DataSource) else data


def tokenizer_of(model: str | ModelProfile, profile: ModelProfile) -> str:
    """Whose tokenizer counts where none is named: a model that is named by its folder has it there."""
    return model if isinstance(model, str) and Path(model).exists() else profile.id
