"""On how many cards of this machine a run is started, and what cannot be started on several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qlora_planner.catalog.parallel import PIPELINE
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.errors import InputError, RefusedError
from qlora_planner.memory.options.parallel import parallel_problems
from qlora_planner.memory.parallel.spread import spread
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

if TYPE_CHECKING:
    from qlora_planner.session.training.request import TrainRequest


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
    """Raises InputError for a strategy that has no cards, RefusedError for what breaks on several cards, or trains on
    garbage."""
    if run.parallel is None:
        return
    if ranks == 1:
        raise InputError(
            f"this run is on several cards (parallel: {run.parallel}); write their number before the card, as"
            " --gpu 2xrtx-4090"
        )
    blocking = [problem for problem in parallel_problems(run, stack) if problem.blocking]
    if blocking:
        raise RefusedError(f"{blocking[0].message}; use {blocking[0].fix}")


def pipeline_map(run: RunConfig, cards: int, profile: ModelProfile | None, device: str) -> dict[str, int] | None:
    """Where one process holds each module of a resolved run over several cards; None under any other strategy.

    Raises InputError for what nobody has seen trained so: a CPU, trainers whose loss was not tried with a head beside
    the labels, and models that are not a text model with one list of layers.
    """
    if run.parallel != PIPELINE:
        return None
    if device == "cpu":
        raise InputError("--device cpu: a pipeline is one process over several cards, which a CPU cannot stand for")
    trainer = trainer_named(run.trainer)
    if not trainer.shards or run.task is not None or run.images:
        raise InputError(
            f"a pipeline of {trainer.name} was never tried: trl-sft and hf-trainer on text train so; --parallel ddp or"
            " fsdp2 trains this run"
        )
    placed = None if profile is None or profile.text_part_of is not None else spread(Placement(profile, run), cards)
    if placed is None:
        raise InputError(
            f"a pipeline spreads one list of layers over cards, and this model has no such list, or fewer layers than"
            f" {cards} cards; --parallel fsdp2 trains the same run"
        )
    return dict(placed)
