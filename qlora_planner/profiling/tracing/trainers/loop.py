"""A step of the plain PyTorch loop: the model's own loss, its outputs alive until the next ones take their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers.common import Batch, apply_kernels, batch, kernel_patches

inputs, patches, prepare = batch, kernel_patches, apply_kernels


def loss(
    forward: Callable[..., Any], model: nn.Module, inputs: Batch, spec: TraceSpec, training: bool = True
) -> tuple[Any, Any]:
    """The model's own loss, and its outputs, in training and evaluation alike."""
    full = {"input_ids": inputs["input_ids"], "labels": inputs["input_ids"]}
    outputs = forward(**(inputs if spec.run.padding or spec.run.images else full))
    return outputs.loss, outputs


def evaluated(loss: Any, rows: int) -> None:
    """Nothing: a plain loop reads the loss as it is."""
