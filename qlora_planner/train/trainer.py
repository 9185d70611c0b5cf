"""The trainer of a run: trl's SFTTrainer, transformers' Trainer or the plain loop, behind the same three verbs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from qlora_planner.errors import InputError
from qlora_planner.spec.run import RunConfig
from qlora_planner.train import data, options
from qlora_planner.train.loop import Loop
from qlora_planner.train.model import base_of
from qlora_planner.train.steps import Watcher


class AnyTrainer(Protocol):
    """What can be done with a built trainer."""

    @property
    def optimizer(self) -> Any:
        """The optimizer; None until training has begun."""

    def train(self, steps: int, watcher: Watcher) -> None:
        """`steps` optimizer steps, told to `watcher`."""

    def evaluate(self) -> None:
        """One evaluation with the run's batch size."""

    def save(self) -> None:
        """Save what was trained."""


def build_trainer(
    model: Any, run: RunConfig, *, rows: list[list[int]], steps: int, folder: str, device: str
) -> AnyTrainer:
    """The run's trainer over tokenised `rows`, for `steps` optimizer steps, writing only under `folder`.

    Raises InputError for an option that this trainer does not have, and whatever the libraries refuse.
    """
    if run.activation_offloading and run.trainer != "trl-sft":
        raise InputError(f"--activation-offloading is trl-sft's; {run.trainer} has no such option")
    if run.packing and run.trainer != "trl-sft":
        raise InputError(f"--packing is trl-sft's; {run.trainer} has no such option")
    if run.trainer == "loop":
        _ready_for_loop(model, run)
        return Loop(model, run, rows, folder=folder, device=device)
    return _LibraryTrainer(model, run, rows, steps=steps, folder=folder, device=device)


def _ready_for_loop(model: Any, run: RunConfig) -> None:
    """What the libraries' trainers do by themselves: checkpointing, gradients to its inputs, Liger's kernels."""
    if run.liger:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model=base_of(model))
    if run.gradient_checkpointing and not base_of(model).is_gradient_checkpointing:  # else PEFT's preparing did it
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options.checkpointing_options(run))
        if run.method != "full":
            model.enable_input_require_grads()


def library_trainer(
    model: Any,
    run: RunConfig,
    arguments: Mapping[str, Any],
    *,
    sequence: Mapping[str, Any],
    tokenizer: Any,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    **more: Any,
) -> Any:
    """trl's SFTTrainer or transformers' Trainer itself: the one place where a run's trainer is made.

    `sequence` are arguments that only SFTConfig has, `collate` makes the batches of transformers' Trainer; `more` goes
    to either (datasets, callbacks). Raises whatever the libraries refuse.
    """
    if run.trainer == "trl-sft":
        import trl

        chosen = trl.SFTConfig(**arguments, **sequence)
        return trl.SFTTrainer(model=model, args=chosen, processing_class=tokenizer, **more)
    import transformers

    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**arguments),
        data_collator=collate,
        processing_class=tokenizer,
        **more,
    )


class _LibraryTrainer:
    """trl's or transformers' trainer."""

    def __init__(
        self, model: Any, run: RunConfig, rows: list[list[int]], *, steps: int, folder: str, device: str
    ) -> None:
        self.model, self.run, self.folder = model, run, folder
        sets: dict[str, Any] = {"train_dataset": data.dataset(rows)}
        if run.eval_batch_size is not None:
            sets["eval_dataset"] = data.dataset(data.evaluation_rows(run, rows))
        self.trainer: Any = library_trainer(
            model,
            run,
            options.training_options(run, steps=steps, folder=folder, device=device),
            sequence=options.sft_options(run),
            tokenizer=data.tokenizer() if run.trainer == "trl-sft" else None,
            collate=data.collate,
            **sets,
        )

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
