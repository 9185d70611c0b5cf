"""What a trainer tells while it trains, the same for every trainer."""

from __future__ import annotations

from typing import Any, Protocol


class Watcher(Protocol):
    """Hears of each part of each step. Called on the training thread, between allocations."""

    def forward_begins(self) -> None:
        """A micro-batch is about to go forward."""

    def generation_begins(self) -> None:
        """Completions are about to be generated, and scored; `forward_begins` says when that is done."""

    def backward_begins(self) -> None:
        """The loss is there; backward is about to start."""

    def backward_ended(self) -> None:
        """Gradients of one micro-batch are there."""

    def optimizer_begins(self, model: Any) -> None:
        """Gradients are complete and clipped."""

    def optimizer_ended(self) -> None:
        """Weights are updated; gradients still live."""

    def step_ended(self) -> None:
        """Gradients are dropped."""
