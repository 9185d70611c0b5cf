"""trl's online trainers: prompts, completions that they generate, and what rewards say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from qlora_planner.spec.run import RunConfig
from qlora_planner.train import data, options
from qlora_planner.train.model import vocabulary
from qlora_planner.train.steps import Watcher
from qlora_planner.train.trainers.library import LibraryTrainer, with_adapters
from qlora_planner.train.trainers.protocol import AnyTrainer, Collate


def build(model: Any, run: RunConfig, *, rows: list[list[int]], steps: int, folder: str, device: str) -> AnyTrainer:
    """See TrainerModule; over prompts of the run's length, whose completions are all as long as they may be."""
    words = data.vocabulary_of(rows)
    sets = {"train_dataset": data.prompt_rows(run, max(2, len(rows)), words), "reward_funcs": [by_place]}
    tokenizer = data.word_tokenizer(words)
    return _Measured(make, model, run, rows, steps=steps, folder=folder, device=device, tokenizer=tokenizer, sets=sets)


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
    """See TrainerModule; trl is given the base model, to which it adds the adapters, and `reward_funcs` among `more`.

    Raises InputError for what only SFTTrainer has.
    """
    return with_adapters(model, run, {**arguments, **options.online_options(run)}, sequence, tokenizer, **more)


def by_place(*, completions: Sequence[Any], **_: Any) -> list[float]:
    """Rewards that differ from each other, so that every completion is learnt from."""
    return [float(index) for index in range(len(completions))]


def prompt_lengths(trainer: Any, rows: Any) -> list[int]:
    """Tokens of each row's prompt, as the trainer makes them."""
    return [len(ids) for part in rows.iter(batch_size=1000) for ids in trainer._tokenize_prompts(part["prompt"])[0]]


@contextmanager
def whole_completions(trainer: Any) -> Iterator[None]:
    """Inside, no completion ends before it is as long as it may be: what ends one is no token that can be drawn."""
    never, ends = vocabulary(trainer.model), trainer.eos_token_ids
    trainer.eos_token_ids = [never]
    if trainer.use_vllm:  # whose sampling is told in words of its own, and which knows no token beyond its vocabulary
        sampler = trainer.vllm_generation
        sampled = sampler.generation_kwargs
        sampler.generation_kwargs = {**sampled, "ignore_eos": True}
        try:
            yield
        finally:
            sampler.generation_kwargs, trainer.eos_token_ids = sampled, ends
        return
    config, arguments = trainer.generation_config, trainer.generation_kwargs
    before = config.eos_token_id, arguments["eos_token_id"]
    config.eos_token_id = arguments["eos_token_id"] = [never]
    try:
        yield
    finally:
        config.eos_token_id, arguments["eos_token_id"] = before
        trainer.eos_token_ids = ends


class _Measured(LibraryTrainer):
    """One whose completions are all whole, and that tells when it generates."""

    def train(self, steps: int, watcher: Watcher) -> None:
        generates: Callable[..., Any] = self.trainer._generate_and_score_completions

        def generated(*args: Any, **kwargs: Any) -> Any:
            watcher.generation_begins()
            made = generates(*args, **kwargs)
            watcher.forward_begins()
            return made

        self.trainer._generate_and_score_completions = generated
        with whole_completions(self.trainer):
            super().train(steps, watcher)
