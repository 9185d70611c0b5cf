"""What trainers of preferences do where they are not told, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

from qlora_planner.catalog.trainers import REFERENCE, TrainerRow
from qlora_planner.errors import InputError
from qlora_planner.memory.options.lengths import settle_lengths
from qlora_planner.memory.options.rollouts import settle_rollouts
from qlora_planner.spec.run import RunConfig
from qlora_planner.text import quoted


def settle_preferences(settle: Callable[[str, object, str], None], run: RunConfig, trainer: TrainerRow) -> None:
    """Settle what trainers of preferences alone have; see `spec.lengths` for how a sequence is shared out.

    Raises InputError for a loss that the trainer does not have, and for a second model as the reference.
    """
    if trainer.drops_dropout and run.lora_dropout is None:
        settle("lora_dropout", 0.0, f"{trainer.name} switches dropout off")
    if trainer.generation is not None:
        settle_rollouts(settle, run, trainer)
        return
    if "max_length" not in trainer.own_options:
        return
    if trainer.loss_types and run.loss_type is None:
        settle("loss_type", trainer.loss_types[0], f"the default of {trainer.name}")
    unknown = [name for name in (run.loss_type or "").split(",") if name and name not in trainer.loss_types]
    if unknown and trainer.loss_types:
        raise InputError(f"--loss-type {quoted(unknown[0])}: {trainer.name} has {', '.join(trainer.loss_types)}")
    if run.method == "full" and REFERENCE in trainer.passes_of(run):
        raise InputError(
            f"--method full with --trainer {trainer.name} keeps a second model as the reference, which is not modelled:"
            " add --precompute-ref-log-probs, or train adapters"
        )
    settle_lengths(settle, run, trainer)
