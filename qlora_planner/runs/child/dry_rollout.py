"""The longest prompts first, with completions as long as they may be: a generation, its scores and its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from qlora_planner.runs.child.dry_run import DryRun, checked_loss, room, step, untouched
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.trainers.online import by_place, whole_completions

# What trl's online trainers count and keep between steps (trl 1.16, grpo_trainer.py and rloo_trainer.py).
_KEPT = (
    "_step", "_logs", "_pending_extra_logs", "_pending_metrics", "_current_train_step_time", "_entropy_window_stats",
    "_last_world_entropy", "entropy_coef",
)  # fmt: skip


def dry_rollout(trainer: Any, run: RunConfig, lengths: Sequence[int], *, check: Callable[[Any], None]) -> DryRun:
    """A generation of the longest prompts, and micro-batches of it, as `dry_run` tries the longest rows.

    `lengths` are the tokens of each prompt. The rewards are asked, and then every completion gets another one, so that
    all of them are learnt from. Where a step generates again, beside gradients, so does this. Raises as `dry_run` does,
    and what the rewards raise.
    """
    arguments, group = trainer.args, trainer.num_generations
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    rows = [trainer.train_dataset[row] for row in order[: arguments.generation_batch_size // group]]
    batch = [dict(row) for row in rows for _ in range(group)]
    again = arguments.steps_per_generation < run.grad_accum
    loss, width = 0.0, 0
    with untouched(trainer), _unkept(trainer), whole_completions(trainer), _told_apart(trainer):
        held = room(trainer, run)
        for _ in range(arguments.steps_per_generation + 1 if again else min(2, run.grad_accum)):
            trainer.current_gradient_accumulation_steps = 1
            loss = step(trainer, trainer.model_wrapped, batch, run)
            width = sum(trainer._buffered_inputs[0][name].shape[1] for name in ("prompt_ids", "completion_ids"))
        checked_loss(loss)
        check(trainer.model_wrapped)
        del held
    return DryRun(rows=run.batch_size, longest=width, tokens=run.batch_size * width, loss=loss)


@contextmanager
def _told_apart(trainer: Any) -> Iterator[None]:
    """The rewards are asked, and their answer is not taken: of equal ones nothing would be learnt."""
    rewards_of = trainer._calculate_rewards

    def calculated(*args: Any, **kwargs: Any) -> Any:
        rewards = rewards_of(*args, **kwargs)
        for row, reward in enumerate(by_place(completions=rewards)):
            rewards[row] = reward
        return rewards

    trainer._calculate_rewards = calculated
    try:
        yield
    finally:
        del trainer._calculate_rewards


@contextmanager
def _unkept(trainer: Any) -> Iterator[None]:
    """What the trainer counts and keeps comes back as it was, and no completions stay for the first step."""
    kept = {name: deepcopy(getattr(trainer, name)) for name in _KEPT if hasattr(trainer, name)}
    seen = trainer.state.num_input_tokens_seen
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(trainer, name, value)
        trainer.state.num_input_tokens_seen = seen
        trainer._buffered_inputs = None
