"""A step of trl's DPOTrainer: pairs through the policy, through the same model without adapters, and its own loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers import preference
from qlora_planner.profiling.tracing.trainers.common import Batch

patches, evaluated = preference.patches, preference.evaluated
# What its head computes for its metrics beside log-probabilities (trl 1.16, dpo_trainer.py).
_OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


def prepare(base: nn.Module, spec: TraceSpec) -> None:
    """See TracedTrainer."""
    preference.prepare(base, spec, _OUTPUTS)


def inputs(spec: TraceSpec, vocabulary: int) -> Batch:
    """Chosen completions first, then rejected ones, as trl's collator lays them out."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    def make() -> Any:
        pairs = spec.sequences // 2
        rows = preference.token_lists(spec, vocabulary, "ids", 2 * pairs)
        examples: list[dict[str, Any]] = []
        for chosen, rejected in zip(rows[:pairs], rows[pairs:], strict=True):
            examples.append(
                {"prompt_ids": chosen["prompt_ids"], "chosen_ids": chosen["ids"], "rejected_ids": rejected["ids"]}
            )
            if spec.run.precompute_ref_log_probs:
                examples[-1] |= {"ref_chosen_logps": -1.0, "ref_rejected_logps": -1.0}
        return DataCollatorForPreference(pad_token_id=0, max_length=spec.run.seq_len)(examples)

    return preference.placed(spec, make)


def loss(
    forward: Callable[..., Any], model: nn.Module, inputs: Batch, spec: TraceSpec, training: bool = True
) -> tuple[Any, Any]:
    """DPOTrainer's own loss, which keeps no outputs."""
    return preference.loss_of(_trainer(model, inputs, spec), forward, model, inputs)


def precompute(model: nn.Module, inputs: Batch, spec: TraceSpec) -> None:
    """One batch of what the trainer asks of the reference before training."""
    _trainer(model, inputs, spec).compute_ref_log_probs(model, dict(inputs))


def _trainer(model: nn.Module, inputs: Batch, spec: TraceSpec) -> Any:
    import trl

    kinds = (spec.run.loss_type or spec.trainer.loss_types[0]).split(",")
    settings = {
        "loss_types": kinds,
        "loss_weights": [1.0] * len(kinds),
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "label_smoothing": 0.0,
        "use_weighting": False,
    }
    return preference.stand_in(trl.DPOTrainer, model, inputs, spec, **settings)


__all__ = ("evaluated", "inputs", "loss", "patches", "precompute", "prepare")
