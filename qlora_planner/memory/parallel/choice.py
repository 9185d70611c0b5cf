"""Which strategy a run on several cards takes where nobody names one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.catalog.parallel import DDP, FSDP2, PIPELINE, PLAIN_OPTIMIZER, USUAL_OPTIMIZER, strategy_row
from qlora_planner.errors import InputError
from qlora_planner.spec.run import RunConfig

# Verdicts of the first strategy that no other one is tried after.
SETTLED = ("fits", "tight", "will-not-run", "cannot-say", None)
OPTIONS = ("parallel", "quant_storage", "reshard_after_forward", "load_on", "ddp_backend")


def for_cards(run: RunConfig, world: int, nodes: int = 1) -> tuple[RunConfig, dict[str, str]]:
    """`run` on so many cards, and why its strategy is what it became.

    A run that fits one card is fastest with every card holding all of it. Raises InputError for one card with options
    of several, and for a pipeline over nodes.
    """
    if world == 1:
        given = [name for name in OPTIONS if getattr(run, name) is not None]
        if given:
            raise InputError(
                f"--{given[0].replace('_', '-')} is of runs on several cards: write their number before the card, as"
                " --gpu 2xrtx-4090"
            )
        return run, {}
    if run.parallel == PIPELINE and nodes > 1:
        raise InputError(
            f"--parallel pipeline: is one process, which reaches the cards of one node and not of {nodes}; write"
            " --nodes 1, or --parallel fsdp2"
        )
    if run.parallel is not None:
        return run, {}
    return run.with_(parallel=DDP), {"parallel": f"{strategy_row(DDP).says}: fastest where a run fits one card"}


def usual_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were given, with what their strategy calls for where nobody said.

    Under FSDP2 the usual optimizer breaks; one that is named stays, and is refused.
    """
    if given.get("parallel") == FSDP2 and "optimizer" not in given:
        return {**given, "optimizer": PLAIN_OPTIMIZER}
    return dict(given)


def sharded(run: RunConfig | None) -> RunConfig:
    """The same run with its weights shared out, for what no single card holds.

    The usual optimizer breaks there, so that torch's own takes its place; one that was named stays, and is refused.
    """
    run = run or RunConfig()
    optimizer = PLAIN_OPTIMIZER if run.optimizer == USUAL_OPTIMIZER else run.optimizer
    return run.with_(parallel=FSDP2, optimizer=optimizer)
