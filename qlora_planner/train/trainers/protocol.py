"""What a trainer's module must have, and what can be done with the trainer that it builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from qlora_planner.spec.run import RunConfig
from qlora_planner.train.steps import Watcher

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


class AnyTrainer(Protocol):
    """What can be done with a built trainer."""

    model: Any  # with its adapters, whoever added them

    @property
    def optimizer(self) -> Any:
        """The optimizer; None until training has begun."""

    def train(self, steps: int, watcher: Watcher) -> None:
        """`steps` optimizer steps, told to `watcher`."""

    def evaluate(self) -> None:
        """One evaluation with the run's batch size."""

    def save(self) -> None:
        """Save what was trained."""


class TrainerModule(Protocol):
    """How one trainer is made."""

    def build(
        self, model: Any, run: RunConfig, *, rows: list[list[int]], steps: int, folder: str, device: str
    ) -> AnyTrainer:
        """Over tokenised `rows`, for `steps` optimizer steps, writing only under `folder`."""

    def make(
        self,
        model: Any,
        run: RunConfig,
        arguments: Mapping[str, Any],
        *,
        sequence: Mapping[str, Any],
        tokenizer: Any,
        collate: Collate,
        **more: Any,
    ) -> Any:
        """The library's own object for a run over a real data set.

        `sequence` are arguments that only SFTConfig has, `collate` makes batches where the trainer does not; `more`
        goes to the trainer as it is (datasets, callbacks). Raises InputError where this trainer is for measuring alone.
        """
