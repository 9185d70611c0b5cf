"""A verification of one rank of several: the builder on the one card here, under a fake process group."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from qlora_planner.catalog.parallel import FSDP2, PLAIN_OPTIMIZER, USUAL_OPTIMIZER, strategy_row
from qlora_planner.errors import InputError
from qlora_planner.measure.as_rank import PLAYED_ALONE
from qlora_planner.session.measuring.verify import Hear, Verification, check_amount, heard, specification, unwatched
from qlora_planner.session.packages import check_executable
from qlora_planner.spec.run import RunConfig

if TYPE_CHECKING:
    from qlora_planner.session.cards import PlannedCard
    from qlora_planner.session.measuring.this_card import ThisCard
    from qlora_planner.session.session import Session


def run_as_rank(run: RunConfig, card: PlannedCard, rank: int) -> RunConfig:
    """The run with the strategy that one process can play alone, which is FSDP2 where none is named.

    Raises InputError for one card, a rank that there is not, and another strategy.
    """
    if card.world == 1:
        raise InputError(f"--as-rank {rank}: one card has no ranks; write their number before it, as --gpu 8xa100-80gb")
    if rank >= card.world:
        raise InputError(f"--as-rank {rank}: ranks of {card.world} cards are 0 to {card.world - 1}")
    if run.parallel is not None and run.parallel not in PLAYED_ALONE:
        raise InputError(
            f"--as-rank: {strategy_row(run.parallel).label} needs its other ranks (DDP's reducer looks at what they"
            " send); FSDP2 is played alone: --parallel fsdp2"
        )
    optimizer = PLAIN_OPTIMIZER if run.optimizer == USUAL_OPTIMIZER and run.parallel is None else run.optimizer
    return run.with_(parallel=FSDP2, optimizer=optimizer)


def verify_as_rank(
    session: Session,
    model: str,
    run: RunConfig,
    card: PlannedCard,
    rank: int,
    *,
    here: ThisCard | None,
    steps: int,
    watching: Callable[[str, int | None], AbstractContextManager[Hear]] = unwatched,
) -> Verification:
    """Real steps of one rank of `card` on the card `here`, None the CPU. Nothing is kept: calibration is of one card.

    Raises as `verify` does.
    """
    from qlora_planner.measure.verify import verify as measure

    check_amount(run, steps)
    device = "cpu" if here is None else "cuda"
    check_executable(run, device)
    # Predicted is this card with as many of its kind beside it, since it is what torch's and CUDA's part are of.
    # NCCL takes nothing of a card under a fake group, so it is no part of what is predicted.
    stand = replace(card, played_alone=True)
    if here is not None:
        stand = replace(stand, gpu=here.gpu, cap_bytes=here.cap_bytes)
    spec, _ = specification(session, model, session.model(model), run, here, device=device, steps=steps, card=stand)
    spec = replace(spec, rank=rank, world=card.world, snapshot=False)
    with heard(spec, here, watching) as hear:
        return Verification(measurement=measure(spec, tell=hear))
