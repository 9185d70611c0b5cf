"""trl's RewardTrainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.spec.run import RunConfig
from qlora_planner.train.trainers.preference import made, measured
from qlora_planner.train.trainers.protocol import AnyTrainer, Collate


def build(model: Any, run: RunConfig, *, rows: list[list[int]], steps: int, folder: str, device: str) -> AnyTrainer:
    """See TrainerModule."""
    return measured(make, model, run, rows, steps=steps, folder=folder, device=device)


def make(
    model: Any,
    run: RunConfig,
    arguments: Mapping[str, Any],
    *,
    sequence: Mapping[str, Any],
    tokenizer: Any,
    collate: Collate,
    **more: Any,
) -> Any:
    """See TrainerModule; trl collates by itself, and adds the adapters."""
    import trl

    return made(trl.RewardTrainer, trl.RewardConfig, model, run, arguments, sequence, tokenizer, **more)
