"""On how many cards of this machine a run is started, and what cannot be started on several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qlora_planner.catalog.parallel import PIPELINE, strategy_row
from qlora_planner.errors import InputError, RefusedError
from qlora_planner.memory.options.parallel import parallel_problems
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.ranks import LAUNCHED

if TYPE_CHECKING:
    from qlora_planner.session.training.request import TrainRequest

# Why a strategy is not started here, and what trains the same run.
_NOT_STARTED = {
    PIPELINE: "its cards take turns, so that several are as fast as one; --parallel fsdp2 trains the same run",
}


def ranks_of(request: TrainRequest) -> int:
    """Processes of a run, one a card: of the cards that were named, else those of the plan, or that it was begun on.

    Raises InputError for more than one node.
    """
    card, gpu = request.options.card, (request.plan or {}).get("gpu")
    if card is not None:
        return cards_here({"count": card.count, "nodes": card.nodes})
    if request.record is not None:
        return int(request.record.get("ranks") or 1)
    return cards_here(gpu) if isinstance(gpu, Mapping) else 1


def cards_here(gpu: Mapping[str, Any]) -> int:
    """How many cards of one machine a plan's `gpu` names. Raises InputError for several nodes."""
    count, nodes = (value if isinstance(value := gpu.get(name), int) else 1 for name in ("count", "nodes"))
    if nodes > 1:
        raise InputError(
            f"this run is on {nodes} nodes, and the cards of one machine are started here; `qlora-plan plan` with"
            " --export slurm, torchrun or skypilot writes what starts it there"
        )
    return count


def check_ranks(run: RunConfig, ranks: int, stack: Mapping[str, str]) -> None:
    """Raises InputError for a strategy that is not started here or has no cards, RefusedError for what breaks on
    several cards, or trains on garbage."""
    if run.parallel is None:
        return
    label = strategy_row(run.parallel).label
    if ranks == 1:
        raise InputError(
            f"this run is on several cards (parallel: {run.parallel}); write their number before the card, as"
            " --gpu 2xrtx-4090"
        )
    if run.parallel not in LAUNCHED:
        raise InputError(f"{label} is planned for, and not started here: {_NOT_STARTED[run.parallel]}")
    blocking = [problem for problem in parallel_problems(run, stack) if problem.blocking]
    if blocking:
        raise RefusedError(f"{blocking[0].message}; use {blocking[0].fix}")
