"""Marks where layers begin and end, forwards by module hooks and backwards by gradient hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from qlora_planner.catalog.trainers import POLICY
from qlora_planner.profiling.tracing.recorder import Recorder
from qlora_planner.spec.trace import ROLLOUT

# Passes without a backward outside of micro-batches.
_OTHER_FORWARDS = ("eval", "precompute", *ROLLOUT)


class SegmentMarker:
    """Watches the decoder layers of one model and tells the recorder when each begins, in both directions.

    Each pass of a training micro-batch is a stage: `forward` with gradients, the others under their own name. The
    first begins where `forward` is marked, whatever it is, and the next where the input embedding is asked again
    after the last layer.
    """

    def __init__(self, recorder: Recorder, layers: nn.ModuleList, embedding: nn.Module, passes: Sequence[str]) -> None:
        self.recorder = recorder
        self.step = 0
        self.micro_step = 0
        self._layers = layers
        self._embedding = embedding
        self._passes = tuple("forward" if name == POLICY else name for name in passes)
        self._pass = 0
        self._inside = 0
        self._after_last = self._complete = False
        self._forward = False
        self._stage = ""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Install the hooks for as long as the context lasts."""
        handles: list[Any] = [register_module_forward_pre_hook(self._any_module)]
        for index, layer in enumerate(self._layers):
            handles.append(
                layer.register_forward_pre_hook(
                    lambda _module, args, kwargs, index=index: self._enter(index, args, kwargs), with_kwargs=True
                )
            )
            handles.append(layer.register_forward_hook(lambda *_args, index=index: self._leave(index)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def mark(self, stage: str, name: str, layer: int = -1) -> None:
        """A segment that no hook announces."""
        if stage == "forward":
            self._pass, stage = 0, self._passes[0]
        self._begin(stage, name, layer)

    def _begin(self, stage: str, name: str, layer: int = -1) -> None:
        self._forward = stage in (*_OTHER_FORWARDS, *self._passes)
        self._stage = stage
        self._inside, self._after_last, self._complete = 0, False, False
        self.recorder.in_backward = stage == "backward"
        self.recorder.mark(stage, name, layer, self.step, self.micro_step)

    def _enter(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._forward:
            return
        self._inside += 1
        self.recorder.mark(self._stage, "layer", index, self.step, self.micro_step)
        self._hook(args, kwargs, index - 1)

    def _leave(self, index: int) -> None:
        if self._forward:
            self._inside -= 1
            self._after_last = self._complete = index == len(self._layers) - 1

    def _any_module(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module is self._embedding and self._complete and self._stage in self._passes[:-1]:
            self._next_pass()
        if self._forward and self._after_last and not self._inside:
            self._after_last = False
            self.recorder.mark(self._stage, "head", -1, self.step, self.micro_step)
            self._hook(args, {}, len(self._layers) - 1)

    def _next_pass(self) -> None:
        if self._pass + 1 < len(self._passes):
            self._pass += 1
            self._begin(self._passes[self._pass], "embedding")

    def _hook(self, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int) -> None:
        """When the gradient of this input is complete, the backward pass reaches the layer that made it."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                if value.requires_grad:
                    step, micro_step = self.step, self.micro_step

                    def reached(_grad: Any, step: int = step, micro_step: int = micro_step) -> None:
                        if self.recorder.in_backward:
                            name = "layer" if layer >= 0 else "embedding"
                            self.recorder.mark("backward", name, layer, step, micro_step)

                    value.register_hook(reached)
                return
