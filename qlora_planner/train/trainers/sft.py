"""trl's SFTTrainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.spec.run import RunConfig
from qlora_planner.train import data
from qlora_planner.train.trainers.library import LibraryTrainer
from qlora_planner.train.trainers.protocol import AnyTrainer, Collate


def build(model: Any, run: RunConfig, *, rows: list[list[int]], steps: int, folder: str, device: str) -> AnyTrainer:
    """See TrainerModule."""
    return LibraryTrainer(make, model, run, rows, steps=steps, folder=folder, device=device, tokenizer=data.tokenizer())


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
    """See TrainerModule; trl collates by itself."""
    import trl

    if run.images:  # trl has a collator of its own for them, whose rows come with a processor
        more["data_collator"] = collate
    chosen = trl.SFTConfig(**arguments, **sequence)
    return trl.SFTTrainer(model=model, args=chosen, processing_class=tokenizer, **more)
