"""trl's preference trainers: rows of texts, their own config, and adapters that they add themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.spec.run import RunConfig
from qlora_planner.train import data, options
from qlora_planner.train.trainers.library import LibraryTrainer, with_adapters
from qlora_planner.train.trainers.protocol import AnyTrainer, Collate


def build(model: Any, run: RunConfig, *, rows: list[list[int]], steps: int, folder: str, device: str) -> AnyTrainer:
    """See TrainerModule; over as many rows of the run's own lengths."""
    shape, words = trainer_named(run.trainer).row_shapes[0], data.vocabulary_of(rows)
    sets = {"train_dataset": data.preference_rows(run, len(rows), words, shape)}
    if run.eval_batch_size is not None:
        sets["eval_dataset"] = data.preference_rows(run, run.eval_batch_size, words, shape)
    tokenizer = data.word_tokenizer(words)
    return LibraryTrainer(
        make, model, run, rows, steps=steps, folder=folder, device=device, tokenizer=tokenizer, sets=sets
    )


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
    """See TrainerModule; trl collates by itself, and is given the base model, to which it adds the adapters.

    Raises InputError for what only SFTTrainer has.
    """
    return with_adapters(model, run, {**arguments, **options.preference_options(run)}, sequence, tokenizer, **more)
