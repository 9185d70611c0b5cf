"""A step of trl's RLOOTrainer: completions generated and scored, with the reference's penalty in their rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qlora_planner.profiling.tracing.segments import SegmentMarker
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers import rollouts
from qlora_planner.profiling.tracing.trainers.common import Batch
from qlora_planner.profiling.tracing.trainers.rollouts import evaluated, generate, inputs, patches, prepare

__all__ = ("evaluated", "generate", "inputs", "loss", "patches", "prepare", "rollout")


def rollout(
    forward: Callable[..., Any], model: nn.Module, spec: TraceSpec, marker: SegmentMarker, vocabulary: int
) -> list[Batch]:
    """See GeneratingTrainer."""
    import trl

    generate(model, spec, marker, vocabulary, spec.run.prompt_len or 1)
    batch = rollouts.completed(spec, vocabulary)
    scores = rollouts.score(forward, model, spec, marker, batch, trl.RLOOTrainer)
    batch["old_logps"] = (scores["old_per_token_logps"] * batch["completion_mask"]).sum(1)
    rows = batch["prompt_ids"].size(0)
    batch["advantages"] = torch.empty((rows,), dtype=torch.float32, device=spec.device_name)
    del scores
    return rollouts.micro_batches(batch, spec)


def loss(
    forward: Callable[..., Any], model: nn.Module, inputs: Batch, spec: TraceSpec, training: bool = True
) -> tuple[Any, Any]:
    """The installed RLOOTrainer's own loss."""
    import trl

    trainer = rollouts.self_of(spec, model, trl.RLOOTrainer)
    return trainer._compute_loss(forward, inputs), None
