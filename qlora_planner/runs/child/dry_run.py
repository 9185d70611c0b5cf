"""The longest batch first: a step and an evaluation that leave no trace, so that memory runs out now or not at all."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from qlora_planner.catalog import find_optimizer
from qlora_planner.errors import RunError
from qlora_planner.record import record
from qlora_planner.runs.child.checks import gradient_fix
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.ranks import local_part

_COLUMNS = (
    "input_ids", "labels", "attention_mask", "seq_lengths", "prompt_ids", "chosen_ids", "rejected_ids",
    "completion_ids", "KL_completion_ids", "label", "ref_chosen_logps", "ref_rejected_logps", "ref_logps",
    "ref_KL_logps", "margin", "chat", "pictures", "completion_mask", "prompt_input_ids", "prompt_attention_mask",
    *(f"{side}_{name}" for side in ("chosen", "rejected") for name in ("input_ids", "attention_mask", "labels")),
)  # fmt: skip
# Of a row's lists of tokens, those that are alternatives to each other: behind what all of them begin with.
_WHOLE = ("chosen_input_ids", "rejected_input_ids")  # with their prompt
_STARTS, _ENDS = (
    ("input_ids", "prompt_ids"),
    ("chosen_ids", "rejected_ids", "completion_ids", "KL_completion_ids", *_WHOLE),
)


@record
class DryRun:
    """What the longest batch was: its rows, the tokens of its longest row, all its tokens with padding, its loss."""

    rows: int
    longest: int
    tokens: int
    loss: float


def dry_run(trainer: Any, run: RunConfig, *, check: Callable[[Any], None]) -> DryRun:
    """Forward and backward of the longest batch, as the trainer does it, then an evaluation batch if the run evaluates.

    Called when the trainer has wrapped its model and made its optimizer. `check` sees the model while gradients are
    there. Two micro-batches where gradients accumulate, because the second meets the gradients of the first; room is
    taken for optimizer states that are still to come. Afterwards weights, gradients, optimizer, counters and random
    numbers are as they were. Raises what the step raises, and RunError for a loss that is no number.
    """
    model = trainer.model_wrapped
    batch = longest_rows(trainer.train_dataset, run.batch_size)
    with untouched(trainer):
        held = room(trainer, run)
        loss = 0.0
        for _ in range(min(2, run.grad_accum)):
            inputs = trainer.data_collator([dict(row) for row in batch])
            shape = _shape(inputs)
            trainer.current_gradient_accumulation_steps = 1
            loss = step(trainer, model, inputs, run)
        checked_loss(loss)
        check(model)
        del held
        model.zero_grad()
        if run.eval_batch_size is not None and trainer.eval_dataset is not None:
            _evaluate(trainer, run)
    return DryRun(rows=len(batch), longest=max(_length(row) for row in batch), tokens=shape[0] * shape[1], loss=loss)


def checked_loss(loss: float) -> None:
    """Raises RunError for a loss that is no number."""
    if loss != loss or loss in (float("inf"), float("-inf")):
        raise RunError(
            f"the loss of the longest batch is {loss}: --compute-dtype bfloat16 where the card has it, else check"
            " the weights and the data"
        )


def step(trainer: Any, model: Any, inputs: Any, run: RunConfig) -> float:
    """The loss of a micro-batch that went forward and backward. Raises RunError where nothing is learnt from, or no
    gradient comes through."""
    labels = _labels(inputs)  # of all ranks, which take as many rows each
    if labels is not None and not int(labels):
        raise RunError(
            "no token of the longest batch is learnt from: to this tokenizer all are padding, or all are masked;"
            " look at --data and --tokenizer"
        )
    try:
        items = None if labels is None else labels * trainer.args.world_size
        return float(trainer.training_step(model, inputs, items))
    except RuntimeError as error:
        if "does not require grad" in str(error):
            raise RunError(f"gradients do not reach the adapters: {gradient_fix(run)}") from error
        raise


def longest_rows(dataset: Any, count: int) -> list[dict[str, Any]]:
    """The `count` longest rows of a tokenised dataset, longest first; fewer where it holds fewer."""
    import heapq

    import pyarrow.compute as compute

    lists = [name for name in (*_STARTS, *_ENDS) if name in dataset.column_names]
    lengths: list[int] = []
    for part in dataset.select_columns(lists).with_format("arrow").iter(batch_size=1000):
        each = {name: compute.list_value_length(part[name]).to_pylist() for name in lists}
        for index in range(len(part)):
            lengths.append(_length({name: range(each[name][index] or 0) for name in lists}))
    places = heapq.nlargest(count, range(len(lengths)), key=lengths.__getitem__)
    columns = [name for name in _COLUMNS if name in dataset.column_names]
    return list(dataset.select_columns(columns).select(places))


def _length(row: Mapping[str, Any]) -> int:
    """Tokens of a row, of the longer of two completions."""
    start = sum(len(row[name]) for name in _STARTS if name in row)
    return start + max((len(row[name]) for name in _ENDS if name in row), default=0)


def _shape(inputs: Any) -> tuple[int, int]:
    """Sequences and their tokens, with padding; of pairs that come apart, both."""
    if "input_ids" in inputs:
        rows, tokens = inputs["input_ids"].shape
        return int(rows), int(tokens)
    chosen, rejected = (inputs[name].shape for name in _WHOLE)
    return 2 * int(chosen[0]), max(int(chosen[1]), int(rejected[1]))


def _labels(inputs: Any) -> Any:
    """How many tokens are learnt from, or rows of a classifier, as the trainer counts them; None where none has one."""
    labels = inputs.get("labels") if isinstance(inputs, Mapping) else None
    if labels is None:
        return None
    return ((labels[..., 1:] if labels.dim() > 1 else labels) != -100).sum()


def _evaluate(trainer: Any, run: RunConfig) -> None:
    assert run.eval_batch_size is not None
    batch = longest_rows(trainer.eval_dataset, run.eval_batch_size)
    if batch:
        trainer.model.eval()
        trainer.prediction_step(
            trainer.model_wrapped, trainer.data_collator([dict(row) for row in batch]), prediction_loss_only=True
        )
        trainer.model.train()


def room(trainer: Any, run: RunConfig) -> Any:
    """Memory as large as the optimizer's states on the device, where they are not made yet."""
    import torch

    row, optimizer = find_optimizer(run.optimizer), trainer.optimizer
    if row is None or getattr(optimizer, "optimizer", optimizer).state:
        return None
    size = 0
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            states = row.states(tuple(local_part(parameter).shape), str(parameter.dtype).removeprefix("torch."))
            size += sum(state.size_bytes for state in states if not state.paged)
    return torch.empty(size, dtype=torch.uint8, device=trainer.args.device)


@contextmanager
def untouched(trainer: Any) -> Iterator[None]:
    """Random numbers and the trainer's own counters come back as they were; gradients go in any case."""
    import numpy
    import torch

    on_card = torch.cuda.is_available() and trainer.args.device.type == "cuda"
    drawn = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    card = torch.cuda.get_rng_state_all() if on_card else None
    metrics = {mode: {key: list(values) for key, values in kept.items()} for mode, kept in _metrics(trainer).items()}
    tokens = getattr(trainer, "_total_train_tokens", None)
    try:
        yield
    finally:
        trainer.model_wrapped.zero_grad()
        random.setstate(drawn[0])
        numpy.random.set_state(drawn[1])
        torch.set_rng_state(drawn[2])
        if card is not None:
            torch.cuda.set_rng_state_all(card)
            torch.cuda.empty_cache()
        for mode, kept in _metrics(trainer).items():
            kept.clear()
            kept.update(metrics.get(mode, {}))
        if tokens is not None:
            trainer._total_train_tokens = tokens


def _metrics(trainer: Any) -> dict[str, Any]:
    """trl averages what it keeps here into the next log line; transformers' own Trainer keeps nothing."""
    metrics: dict[str, Any] = getattr(trainer, "_metrics", getattr(trainer, "_stored_metrics", {}))
    return metrics
