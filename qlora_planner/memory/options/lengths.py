"""The sequence of a run whose rows are a prompt and completions, from the lengths that were asked for."""

from __future__ import annotations

from collections.abc import Callable

from qlora_planner.catalog.trainers import TrainerRow
from qlora_planner.errors import InputError
from qlora_planner.spec.run import RunConfig


def settle_lengths(settle: Callable[[str, object, str], None], run: RunConfig, trainer: TrainerRow) -> None:
    """Settle `seq_len` where `prompt_len` and `completion_len` are both given, or `max_length` cuts.

    Raises InputError where nothing of a completion would be left: trl drops such rows, or learns nothing from them.
    """
    total, why = run.seq_len, ""
    # Where whole rows are scored, what has no prompt is a completion alone.
    alone = run.completion_len is not None and run.prompt_len is None and not trainer.scores_completions
    if run.completion_len is not None and (run.prompt_len is not None or alone):
        total, why = (run.prompt_len or 0) + run.completion_len, "prompt-len and completion-len"
        if run.max_length is not None and run.max_length < total:
            total, why = run.max_length, f"max-length cuts {total:,} tokens"
    elif run.max_length is not None:
        total, why = run.max_length, "max-length"
    if run.prompt_len is not None and run.prompt_len >= total:
        limit = "--max-length" if run.max_length == total else "--seq-len"
        raise InputError(
            f"--prompt-len {run.prompt_len:,} fills {limit} {total:,}: nothing of a completion is left that"
            f" {trainer.name} could learn from; shorten the prompt, or raise {limit}"
        )
    if run.prompt_len is None and run.completion_len is not None and run.completion_len > total:
        raise InputError(f"--completion-len {run.completion_len:,} is longer than the sequence, {total:,} tokens")
    if why:
        settle("seq_len", total, why)
