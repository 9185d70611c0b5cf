"""What a traced trainer's module must have: one forward pass and loss, as that trainer computes them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import nn

from qlora_planner.profiling.tracing.recorder import Recorder
from qlora_planner.profiling.tracing.segments import SegmentMarker
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers.common import Batch


class TracedTrainer(Protocol):
    """How one trainer's step is traced."""

    def patches(self, spec: TraceSpec) -> AbstractContextManager[None]:
        """What stands in, while tracing, for code that a CPU would choose otherwise."""

    def prepare(self, base: nn.Module, spec: TraceSpec) -> None:
        """Give the model the head, and the kernels, that the trainer gives it."""

    def inputs(self, spec: TraceSpec, vocabulary: int) -> Batch:
        """One micro-batch as the trainer's collator makes it."""

    def loss(
        self, forward: Callable[..., Any], model: nn.Module, inputs: Batch, spec: TraceSpec, training: bool = True
    ) -> tuple[Any, Any]:
        """The loss, and what the caller keeps alive beside it."""

    def evaluated(self, loss: Any, rows: int) -> None:
        """What the trainer makes of an evaluation batch's loss."""


class Precomputer(Protocol):
    """How a batch is traced that a trainer puts through its reference before training."""

    def precompute(self, model: nn.Module, inputs: Batch, spec: TraceSpec) -> None:
        """One batch of it."""


class PatchingTrainer(TracedTrainer, Protocol):
    """A trainer that patches the libraries' classes, and makes its model ready by itself."""

    def making(self, model_type: str) -> AbstractContextManager[None]:
        """While a model of this type and its adapters are made, without storage."""

    def loaded(self, model: Any, spec: TraceSpec) -> Any:
        """The model as its loader hands it out, quantised and without adapters."""

    def adapted(self, model: Any, spec: TraceSpec) -> Any:
        """The model with its adapters."""

    def watched(self, recorder: Recorder) -> AbstractContextManager[None]:
        """While its step is recorded."""


class GeneratingTrainer(TracedTrainer, Protocol):
    """A trainer whose micro-batches are completions that it generates."""

    def rollout(
        self, forward: Callable[..., Any], model: nn.Module, spec: TraceSpec, marker: SegmentMarker, vocabulary: int
    ) -> list[Batch]:
        """Generate completions and score them: the micro-batches until the next generation."""

    def generate(
        self, model: nn.Module, spec: TraceSpec, marker: SegmentMarker, vocabulary: int, prompt_len: int
    ) -> None:
        """Generate the first completions' tokens after prompts of this length, and no more."""
