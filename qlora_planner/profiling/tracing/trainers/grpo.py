"""A step of trl's GRPOTrainer: completions generated and scored, then its own loss on each micro-batch of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qlora_planner.memory.sweep.validity import uses_vllm
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
    items = batch["completion_mask"].sum()
    scores = rollouts.score(forward, model, spec, marker, batch, trl.GRPOTrainer)
    rows = batch["prompt_ids"].size(0)
    batch["advantages"] = torch.empty((rows,), dtype=torch.float32, device=spec.device_name)
    if uses_vllm(spec.run):  # what vLLM sampled with, and by how much the policy has moved since, a figure a sequence
        batch["sampling_per_token_logps"] = torch.empty_like(scores["old_per_token_logps"])
        batch["importance_sampling_ratio"] = torch.empty((rows, 1), dtype=torch.float32, device=spec.device_name)
    return rollouts.micro_batches(batch | scores | {"num_items_in_batch": items}, spec)


def loss(
    forward: Callable[..., Any], model: nn.Module, inputs: Batch, spec: TraceSpec, training: bool = True
) -> tuple[Any, Any]:
    """The installed GRPOTrainer's own loss."""
    import trl

    trainer = rollouts.self_of(spec, model, trl.GRPOTrainer)
    return trainer._compute_loss(forward, inputs), None
