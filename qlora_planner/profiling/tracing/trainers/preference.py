"""What traced steps of trl's preference trainers share: a stand-in for the trainer, and batches from its collator."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers import sft
from qlora_planner.profiling.tracing.trainers.common import Batch, apply_liger, fake, loss_by_row, without_cache
from qlora_planner.spec.lengths import lengths_of
from qlora_planner.train.options import checkpointing_options

patches, evaluated = sft.patches, loss_by_row


def prepare(base: Any, spec: TraceSpec, outputs: tuple[str, ...]) -> None:
    """What these trainers do to the model: no dropout, a head that scores in tiles, Liger's layers but not its head."""
    from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

    disable_dropout_in_model(base)
    apply_liger(base, spec, fused_linear_cross_entropy=False)
    add_fused_lm_head(base, outputs=outputs)
    without_cache(base)


def texts(spec: TraceSpec, vocabulary: int, rows: int) -> list[list[int]]:
    """Rows of `seq_len` tokens; with padding the last is half as long."""
    made = []
    for row in range(rows):
        short = spec.run.padding and row == rows - 1
        count = max(1, spec.run.seq_len // 2) if short else spec.run.seq_len
        made.append([3 + index % max(vocabulary - 8, 1) for index in range(count)])
    return made


def token_lists(spec: TraceSpec, vocabulary: int, key: str, rows: int) -> list[dict[str, list[int]]]:
    """Rows with `prompt_ids` and `key`, each as long as the run says; with padding the last is half as long."""
    lengths = lengths_of(spec.run)
    made = []
    for row in range(rows):
        short = spec.run.padding and row == rows - 1
        count = max(1, lengths.completion // 2) if short else lengths.completion
        # No id that a model looks for, such as the one it pads with.
        ids = [3 + index % max(vocabulary - 8, 1) for index in range(lengths.prompt + count)]
        made.append({"prompt_ids": ids[: lengths.prompt], key: ids[lengths.prompt :]})
    return made


def placed(spec: TraceSpec, make: Callable[[], Mapping[str, Any]]) -> Batch:
    """The real batch that `make` gives, as fake tensors on the device with its values."""
    with _disable_current_modes():
        batch = dict(make())
    return {name: fake(value, spec.device_name) for name, value in batch.items()}


def loss_of(trainer: Any, forward: Callable[..., Any], model: nn.Module, inputs: Batch) -> tuple[Any, Any]:
    """The trainer's own loss of the model under autocast, as accelerate leaves it; no outputs are kept."""
    patched = contextlib.nullcontext() if forward is model else mock.patch.object(model, "forward", forward)
    with patched:
        return trainer.compute_loss(model, dict(inputs)), None


def _autocast(spec: TraceSpec) -> Any:
    if spec.compute_dtype is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(spec.device_name, dtype=spec.compute_dtype)


def stand_in(kind: Any, model: Any, inputs: Batch, spec: TraceSpec, **settings: Any) -> Any:
    """As much of a trainer of class `kind` as its loss looks at; `settings` are what only that class has."""
    text: Any = model.config.get_text_config()
    weight = getattr(text, "router_aux_loss_coef", 0.0)
    accelerator = SimpleNamespace(
        device=inputs["input_ids"].device,
        gather=lambda tensor: tensor,
        gather_for_metrics=lambda tensor: tensor,
        unwrap_model=lambda wrapped: wrapped,
        autocast=lambda: _autocast(spec),
    )
    run = spec.run
    common: dict[str, Any] = {
        "model": model,
        "ref_model": None,
        "accelerator": accelerator,
        "args": SimpleNamespace(
            gradient_checkpointing_kwargs=checkpointing_options(run), discopop_tau=0.05, max_length=run.seq_len
        ),
        "beta": 0.1 if run.beta is None else run.beta,
        "precompute_ref_logps": bool(run.precompute_ref_log_probs),
        "router_aux_loss_coef": weight,
        "aux_loss_enabled": hasattr(text, "output_router_logits") and weight != 0.0,
    }
    return with_attributes(kind, **common | settings)


def with_attributes(kind: Any, **attributes: Any) -> Any:
    """A trainer of class `kind` that nobody set up: it has these attributes, and those that count what it saw."""
    counts = {
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    trainer = object.__new__(kind)
    for name, value in (attributes | counts).items():
        setattr(trainer, name, value)
    return trainer
