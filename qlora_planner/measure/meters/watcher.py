"""Hears of each part of each training step: borders of stretches, times, and where gradients lie."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from qlora_planner.measure.meters.tensor_owners import gradient_owners
from qlora_planner.measure.meters.timeline import HEAD, Timeline


class StepWatcher:
    """The `train.steps.Watcher` of a measurement.

    `enter` begins a stretch; `on_step(step, seconds)` hears of each finished step. `synchronize` waits for the device,
    so that a step's time is that of its work. `note_owners` is called when trained tensors have come to where they
    stay: before the first step (trainers cast adapters) and after it (optimizers make their states in it).
    """

    def __init__(
        self,
        *,
        enter: Callable[[str], None],
        timeline: Timeline,
        synchronize: Callable[[], None],
        on_step: Callable[[int, float], None],
        note_owners: Callable[[], None],
        note_gradients: bool,
    ) -> None:
        self._enter, self._timeline, self._synchronize = enter, timeline, synchronize
        self._on_step, self._note_owners, self._note_gradients = on_step, note_owners, note_gradients
        self._since: float | None = None
        self.in_backward = False
        self.step_s: list[float] = []

    def forward_begins(self) -> None:
        if self._since is None:
            self._note_owners()
            self._since = self._now()
        self._enter("forward")
        self._timeline.mark("forward")

    def generation_begins(self) -> None:
        self._enter("generate")

    def backward_begins(self) -> None:
        self.in_backward = True
        self._enter("backward")
        # The head's backward still belongs to the head; where no layer was seen there is no head to wait for.
        if not self._timeline.stages or self._timeline.stages[-1][1] != HEAD:
            self._timeline.mark("backward")

    def backward_ended(self) -> None:
        self.in_backward = False
        self._enter("between")
        self._timeline.mark("forward")  # the next micro-batch, or clipping

    def optimizer_begins(self, model: Any) -> None:
        if self._note_gradients:
            self._timeline.own(gradient_owners(model))
        self._enter("optimizer")
        self._timeline.mark("optimizer")

    def optimizer_ended(self) -> None:
        self._enter("between")

    def step_ended(self) -> None:
        now = self._now()
        if self._since is not None:
            self.step_s.append(now - self._since)
            self._on_step(len(self.step_s), self.step_s[-1])
        if len(self.step_s) == 1:
            self._note_owners()
        self._since = now
        self._timeline.mark("forward")

    def _now(self) -> float:
        self._synchronize()
        return time.perf_counter()
