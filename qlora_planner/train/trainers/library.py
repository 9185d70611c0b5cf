"""A library's own trainer, behind the three verbs of `AnyTrainer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qlora_planner.catalog.classifiers import labels_of
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.errors import InputError
from qlora_planner.spec.run import RunConfig
from qlora_planner.train import adapters, data, images, options
from qlora_planner.train.model import base_of
from qlora_planner.train.quiet_imports import trl_module
from qlora_planner.train.steps import Watcher


class LibraryTrainer:
    """A trainer of a library, as `make` makes it, behind the three verbs that are measured."""

    def __init__(
        self,
        make: Callable[..., Any],
        model: Any,
        run: RunConfig,
        rows: list[list[int]],
        *,
        steps: int,
        folder: str,
        device: str,
        tokenizer: Any = None,
        sets: Mapping[str, Any] | None = None,
    ) -> None:
        self.run, self.folder = run, folder
        if sets is None:
            classes = labels_of(run)
            sets = {"train_dataset": data.dataset(rows, classes)}
            if run.eval_batch_size is not None:
                sets["eval_dataset"] = data.dataset(data.evaluation_rows(run, rows), classes)
        self.trainer: Any = make(
            model,
            run,
            options.training_options(run, steps=steps, folder=folder, device=device),
            sequence=options.sft_options(run),
            tokenizer=tokenizer,
            collate=images.collator(run, base_of(model).config),
            **sets,
        )
        self.model = self.trainer.model

    @property
    def optimizer(self) -> Any:
        """The optimizer inside accelerate's wrapper; None before training."""
        wrapped = self.trainer.optimizer
        return getattr(wrapped, "optimizer", wrapped)

    def train(self, steps: int, watcher: Watcher) -> None:
        self.trainer.args.max_steps = steps
        self._tell(watcher)
        self.trainer.train()

    def evaluate(self) -> None:
        self.trainer.evaluate()

    def save(self) -> None:
        self.trainer.save_model(str(Path(self.folder) / "saved"))

    def _tell(self, watcher: Watcher) -> None:
        """Callbacks around steps and the optimizer, and a door in accelerate's `backward`, which has no callback."""
        from transformers import TrainerCallback

        class Callback(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                watcher.forward_begins()

            def on_substep_end(self, *_: Any, **__: Any) -> None:
                watcher.forward_begins()

            def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
                watcher.optimizer_begins(model)

            def on_optimizer_step(self, *_: Any, **__: Any) -> None:
                watcher.optimizer_ended()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                watcher.step_ended()

        accelerator = self.trainer.accelerator
        inner = accelerator.backward

        def backward(loss: Any, **more: Any) -> None:
            watcher.backward_begins()
            inner(loss, **more)
            watcher.backward_ended()

        accelerator.backward = backward
        self.trainer.add_callback(Callback())


def with_adapters(
    model: Any, run: RunConfig, arguments: Mapping[str, Any], sequence: Mapping[str, Any], tokenizer: Any, **more: Any
) -> Any:
    """The trainer of trl's that the run names, given the base model, to which it adds the adapters.

    Raises InputError for what only SFTTrainer has.
    """
    trainer = trainer_named(run.trainer)
    if sequence.get("assistant_only_loss"):
        raise InputError(f"--assistant-only-loss is for chats that are there; {run.trainer} scores completions")
    trl = trl_module(trainer.trl_module)
    made, config = getattr(trl, f"{trainer.trl_class}Trainer"), getattr(trl, f"{trainer.trl_class}Config")
    return made(
        model=model,
        args=config(**arguments),
        processing_class=tokenizer,
        peft_config=adapters.lora_config(model, run),
        **more,
    )
