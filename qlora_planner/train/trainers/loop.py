"""The plain PyTorch loop: no autocast, the model's own loss, its output alive through backward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qlora_planner.catalog.trainers import DEFAULT_TRAINER
from qlora_planner.errors import InputError
from qlora_planner.spec.run import RunConfig
from qlora_planner.train import data, images, losses, options
from qlora_planner.train.model import base_of
from qlora_planner.train.steps import Watcher
from qlora_planner.train.trainers.protocol import AnyTrainer, Collate


def build(model: Any, run: RunConfig, *, rows: list[list[int]], steps: int, folder: str, device: str) -> AnyTrainer:
    """See TrainerModule."""
    _ready(model, run)
    return Loop(model, run, rows, folder=folder, device=device)


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
    """Raises InputError: nobody trains over a data set with it."""
    raise InputError(f"--trainer {run.trainer} is for measuring alone; train with --trainer {DEFAULT_TRAINER}")


def _ready(model: Any, run: RunConfig) -> None:
    """What the libraries' trainers do by themselves: checkpointing, gradients to its inputs, Liger's kernels."""
    losses.apply_liger(base_of(model), run)
    if run.loss_kernel == "cut-cross-entropy":
        losses.cut_cross_entropy(base_of(model))
    layers = options.checkpointed_layers(run)
    # Where PEFT's preparing did it already, every layer is checkpointed.
    if run.gradient_checkpointing and (layers or not base_of(model).is_gradient_checkpointing):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options.checkpointing_options(run), **layers)
        if run.method != "full":
            model.enable_input_require_grads()


class Loop:
    """A trainer with three verbs: train, evaluate, save."""

    def __init__(self, model: Any, run: RunConfig, rows: list[list[int]], *, folder: str, device: str) -> None:
        self.model, self.run, self.rows = model, run, rows
        self.folder, self.device = folder, device
        self._collate = images.collator(run, base_of(model).config)
        self.optimizer: Any = None
        self._placed: dict[str, Any] = {}
        self._outputs: Any = None

    def train(self, steps: int, watcher: Watcher) -> None:
        """`steps` optimizer steps."""
        run, model = self.run, self.model
        model.train()
        self.optimizer = self._optimizer(steps)
        batches = self._batches()
        for _ in range(steps):
            for _ in range(run.grad_accum):
                self._micro_batch(next(batches), watcher)
            watcher.optimizer_begins(model)
            self.optimizer.step()
            watcher.optimizer_ended()
            self.optimizer.zero_grad(set_to_none=True)
            watcher.step_ended()

    def _micro_batch(self, batch: dict[str, Any], watcher: Watcher) -> None:
        watcher.forward_begins()
        self._placed = {name: value.to(self.device) for name, value in batch.items()}
        # Variables of a plain loop live until they are bound again: the last outputs through the next forward.
        self._outputs = self.model(**self._placed)
        loss = self._outputs.loss if self.run.grad_accum == 1 else self._outputs.loss / self.run.grad_accum
        watcher.backward_begins()
        loss.backward()
        watcher.backward_ended()

    def evaluate(self) -> None:
        """One batch of `eval_batch_size` rows, logits and loss, without gradients."""
        import torch

        self.model.eval()
        with torch.no_grad():
            batch = self._collate([{"input_ids": row} for row in data.evaluation_rows(self.run, self.rows)])
            placed = {name: value.to(self.device) for name, value in batch.items()}
            self.model(**placed)

    def save(self) -> None:
        """The adapters (or the whole model of a full fine-tune) into the folder."""
        self.model.save_pretrained(str(Path(self.folder) / "saved"))

    def _batches(self) -> Iterator[dict[str, Any]]:
        size = self.run.batch_size
        while True:
            for start in range(0, len(self.rows) - size + 1, size):
                batch = self._collate([{"input_ids": row} for row in self.rows[start : start + size]])
                if not (self.run.padding or self.run.images):
                    del batch["attention_mask"]  # full rows need none, and a plain loop passes none
                yield batch

    def _optimizer(self, steps: int) -> Any:
        from transformers import Trainer, TrainingArguments

        arguments = TrainingArguments(
            **options.training_options(self.run, steps=steps, folder=self.folder, device=self.device)
        )
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, self.model)
        return kind([p for p in self.model.parameters() if p.requires_grad], **settings)
