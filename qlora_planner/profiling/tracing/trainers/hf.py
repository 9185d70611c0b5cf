"""A step of transformers' Trainer: the model's own loss over the items of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qlora_planner.catalog.classifiers import labels_of
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers.common import (
    Batch,
    apply_kernels,
    batch,
    kernel_patches,
    labelled,
    loss_by_row,
    without_cache,
)

patches, evaluated = kernel_patches, loss_by_row


def inputs(spec: TraceSpec, vocabulary: int) -> Batch:
    """See TracedTrainer."""
    rows, labels = batch(spec, vocabulary), labels_of(spec.run)
    return rows if labels is None else labelled(rows, labels, spec)


def prepare(base: nn.Module, spec: TraceSpec) -> None:
    """See TracedTrainer."""
    apply_kernels(base, spec)
    without_cache(base)


def loss(
    forward: Callable[..., Any], model: nn.Module, inputs: Batch, spec: TraceSpec, training: bool = True
) -> tuple[Any, Any]:
    """The model's own loss; an evaluation keeps the outputs."""
    items = torch.empty((), dtype=torch.int64, device="cuda")
    skip = {"skip_logits": True} if spec.run.liger and not training else {}
    outputs = forward(**inputs, **skip, num_items_in_batch=items)
    return outputs["loss"], None if training else outputs
