"""How a row of a prompt and completions shares out its sequence."""

from __future__ import annotations

from qlora_planner.record import record
from qlora_planner.spec.run import RunConfig


@record
class Lengths:
    """Tokens of a row's prompt and of its longer completion, as they are after cutting: `run.seq_len` together."""

    prompt: int
    completion: int


def lengths_of(run: RunConfig) -> Lengths:
    """How `run.seq_len` is shared out: as its `prompt_len` or `completion_len` say, by halves where neither does.

    Sequences are cut at their end (trl's `truncation_mode="keep_start"`), so a prompt is kept before completions.
    """
    total = run.seq_len
    if run.prompt_len is not None:
        prompt = run.prompt_len
    elif run.completion_len is not None:
        prompt = total - run.completion_len
    else:
        prompt = total // 2
    prompt = min(max(prompt, 0), total)
    return Lengths(prompt=prompt, completion=total - prompt)
