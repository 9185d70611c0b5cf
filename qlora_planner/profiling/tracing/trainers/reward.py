"""A step of trl's RewardTrainer: pairs of texts through a classifier of one label, and its own loss."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import nn

from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers import preference
from qlora_planner.profiling.tracing.trainers.common import Batch, apply_liger, loss_by_row, no_patches, without_cache

patches, evaluated = no_patches, loss_by_row


def prepare(base: nn.Module, spec: TraceSpec) -> None:
    """See TracedTrainer."""
    from trl.trainer.utils import disable_dropout_in_model

    disable_dropout_in_model(base)
    apply_liger(base, spec)
    without_cache(base)


def inputs(spec: TraceSpec, vocabulary: int) -> Batch:
    """Better texts first, then the others, as trl's collator lays them out."""
    from trl.trainer.reward_trainer import DataCollatorForPreference

    def make() -> Any:
        pairs = spec.sequences // 2
        rows = preference.texts(spec, vocabulary, 2 * pairs)
        examples = [
            {"chosen_ids": chosen, "rejected_ids": rejected}
            for chosen, rejected in zip(rows[:pairs], rows[pairs:], strict=True)
        ]
        return DataCollatorForPreference(pad_token_id=0)(examples)

    return preference.placed(spec, make)


def loss(
    forward: Callable[..., Any], model: nn.Module, inputs: Batch, spec: TraceSpec, training: bool = True
) -> tuple[Any, Any]:
    """RewardTrainer's own loss, which keeps no outputs."""
    import trl

    accelerator = SimpleNamespace(gather=lambda tensor: tensor, gather_for_metrics=lambda tensor: tensor)
    arguments = SimpleNamespace(center_rewards_coefficient=None)
    trainer = preference.with_attributes(trl.RewardTrainer, model=model, accelerator=accelerator, args=arguments)
    return trainer.compute_loss(forward, dict(inputs)), None


__all__ = ("evaluated", "inputs", "loss", "patches", "prepare")
