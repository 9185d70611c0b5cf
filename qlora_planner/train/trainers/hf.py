"""transformers' Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.catalog.classifiers import labels_of
from qlora_planner.spec.run import RunConfig
from qlora_planner.train import losses
from qlora_planner.train.model import base_of
from qlora_planner.train.trainers.library import LibraryTrainer
from qlora_planner.train.trainers.protocol import AnyTrainer, Collate


def build(model: Any, run: RunConfig, *, rows: list[list[int]], steps: int, folder: str, device: str) -> AnyTrainer:
    """See TrainerModule."""
    return LibraryTrainer(make, model, run, rows, steps=steps, folder=folder, device=device)


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
    """See TrainerModule; it has none of SFTConfig's own arguments."""
    import transformers

    if run.loss_kernel == "cut-cross-entropy":
        losses.cut_cross_entropy(base_of(model))
    if labels_of(run) is not None:
        # A classifier's loss is the mean over a micro-batch's rows and counts no items: told so, transformers divides
        # it by the number of micro-batches; else their gradients would add up (trainer.py, training_step).
        base_of(model).accepts_loss_kwargs = False
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**arguments),
        data_collator=collate,
        processing_class=tokenizer,
        **more,
    )
