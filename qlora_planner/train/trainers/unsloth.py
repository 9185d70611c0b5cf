"""trl's SFTTrainer as Unsloth has changed it: rows are texts, and their batches have no padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.errors import InputError
from qlora_planner.spec.run import RunConfig
from qlora_planner.train import data
from qlora_planner.train.trainers.library import LibraryTrainer
from qlora_planner.train.trainers.protocol import AnyTrainer, Collate
from qlora_planner.train.unsloth.options import trainer_options


def build(model: Any, run: RunConfig, *, rows: list[list[int]], steps: int, folder: str, device: str) -> AnyTrainer:
    """See TrainerModule; over texts of the run's own length: a batch has as many tokens as was planned for."""
    words = data.vocabulary_of(rows)
    sets = {"train_dataset": data.text_rows(run, rows, words)}
    if run.eval_batch_size is not None:
        sets["eval_dataset"] = data.text_rows(run, data.evaluation_rows(run, rows), words)
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
    """See TrainerModule; it makes tokens and batches by itself. Raises InputError for what it is not asked for here."""
    import trl

    if sequence.get("assistant_only_loss"):
        raise InputError("--assistant-only-loss is not passed on to Unsloth, which looks for markers of its own")
    chosen = trl.SFTConfig(**trainer_options(run, dict(arguments)))
    for name in ("train_dataset", "eval_dataset"):
        if more.get(name) is not None:
            more[name] = ended(more[name], tokenizer)
    return trl.SFTTrainer(model=model, args=chosen, processing_class=tokenizer, **more)


def ended(rows: Any, tokenizer: Any) -> Any:
    """Rows of texts with the token that ends each; other shapes are ended by their template or by the trainer."""
    if "text" not in rows.column_names or tokenizer.eos_token is None:
        return rows

    def with_end(row: dict[str, Any]) -> dict[str, Any]:
        text = row["text"]
        return {"text": text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token}

    return rows.map(with_end)
