"""A step of trl's KTOTrainer: completions and those of other prompts, through policy and reference, its own loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers import preference
from qlora_planner.profiling.tracing.trainers.common import Batch

patches, evaluated = preference.patches, preference.evaluated
# What its head computes for its metrics beside log-probabilities (trl 1.16, kto_trainer.py).
_OUTPUTS = ("log_probs", "entropy", "mean_logits")


def prepare(base: nn.Module, spec: TraceSpec) -> None:
    """See TracedTrainer."""
    preference.prepare(base, spec, _OUTPUTS)


def inputs(spec: TraceSpec, vocabulary: int) -> Batch:
    """Every other completion is wanted; each prompt has the completion of the row before it for the divergence."""
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    def make() -> Any:
        rows = preference.token_lists(spec, vocabulary, "completion_ids", spec.sequences)
        examples: list[dict[str, Any]] = [{**row, "label": bool(index % 2)} for index, row in enumerate(rows)]
        for index, example in enumerate(examples):
            if _diverges(spec):
                example["KL_completion_ids"] = rows[index - 1]["completion_ids"]
            if spec.run.precompute_ref_log_probs:
                example["ref_logps"] = -1.0
                if _diverges(spec):
                    example["ref_KL_logps"] = -1.0
        return DataCollatorForUnpairedPreference(pad_token_id=0, max_length=spec.run.seq_len)(examples)

    return preference.placed(spec, make)


def loss(
    forward: Callable[..., Any], model: nn.Module, inputs: Batch, spec: TraceSpec, training: bool = True
) -> tuple[Any, Any]:
    """KTOTrainer's own loss, which keeps no outputs."""
    return preference.loss_of(_trainer(model, inputs, spec), forward, model, inputs)


def precompute(model: nn.Module, inputs: Batch, spec: TraceSpec) -> None:
    """One batch of what the trainer asks of the reference before training."""
    _trainer(model, inputs, spec).compute_ref_log_probs(model, dict(inputs))


def _diverges(spec: TraceSpec) -> bool:
    return spec.run.loss_type not in spec.trainer.without_divergence


def _trainer(model: nn.Module, inputs: Batch, spec: TraceSpec) -> Any:
    import trl

    settings = {
        "loss_type": spec.run.loss_type or spec.trainer.loss_types[0],
        "calculate_KL": _diverges(spec),
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
    }
    return preference.stand_in(trl.KTOTrainer, model, inputs, spec, **settings)


__all__ = ("evaluated", "inputs", "loss", "patches", "precompute", "prepare")
