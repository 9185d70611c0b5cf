"""A step of trl's SFTTrainer from 1.15 on: its own loss, in tiles inside the head."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers.common import (
    IGNORED,
    Batch,
    apply_liger,
    batch,
    fake,
    loss_by_row,
    without_cache,
)

# The first trl whose collator hands over where packed sequences begin.
BOUNDARIES_VERSION = (1, 16)

evaluated = loss_by_row


def inputs(spec: TraceSpec, vocabulary: int) -> Batch:
    """See TracedTrainer."""
    return _packed_batch(spec, vocabulary) if spec.run.packing else batch(spec, vocabulary)


def _packed_batch(spec: TraceSpec, vocabulary: int) -> Batch:
    """What trl's padding-free collator hands the model: all rows end to end, each made of two sequences, no mask."""
    length = max(1, spec.run.seq_len // 2)
    count = 2 * spec.sequences
    with _disable_current_modes():
        ids = torch.arange(count * length).remainder(max(vocabulary - 8, 1)).add(3).view(1, -1)
        positions = torch.arange(length).repeat(count).view(1, -1)
        labels = ids.masked_fill(positions == 0, IGNORED)
    rows: Batch = {
        name: fake(value, spec.device_name)
        for name, value in (("input_ids", ids), ("labels", labels), ("position_ids", positions))
    }
    if spec.trainer_version >= BOUNDARIES_VERSION:
        with _disable_current_modes():
            bounds = torch.arange(count + 1, dtype=torch.int32).mul(length)
            index = torch.arange(count, dtype=torch.int32).repeat_interleave(length).view(1, -1)
        rows["cu_seq_lens_q"] = rows["cu_seq_lens_k"] = fake(bounds, spec.device_name)
        rows["max_length_q"] = rows["max_length_k"] = length
        rows["seq_idx"] = fake(index, spec.device_name)
    return rows


@contextlib.contextmanager
def patches(_spec: TraceSpec) -> Iterator[None]:
    """TRL's chunked log-probabilities take their Triton path: tiles fold in place, products accumulate in place."""
    import trl.kernels.chunked_logprob as head
    import trl.trainer.utils as utils

    def nothing(*_args: Any, **_kwargs: Any) -> None:
        return None

    with contextlib.ExitStack() as stack:
        for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
            stack.enter_context(mock.patch.object(head, name, nothing))
        # The tiles' stand-ins above are called where the kernels would be ...
        stack.enter_context(mock.patch.object(head, "_use_triton", lambda _device: False))
        # ... after the same masking as with the kernels: only positions with a label are scored.
        stack.enter_context(mock.patch.object(utils, "_use_triton", lambda _device: True))
        yield


def balance_experts(base: Any, spec: TraceSpec) -> None:
    """SFTTrainer's load-balancing loss of expert models: 0.001 from trl 1.7, the config's own weight from 1.14."""
    text = base.config.get_text_config()
    if spec.trainer_version < (1, 7) or getattr(text, "output_router_logits", None) is None:
        return
    weight = getattr(text, "router_aux_loss_coef", 0.0) if spec.trainer_version >= (1, 14) else 0.001
    text.router_aux_loss_coef = weight
    text.output_router_logits = weight != 0.0


def prepare(base: nn.Module, spec: TraceSpec) -> None:
    """See TracedTrainer."""
    balance_experts(base, spec)
    apply_liger(base, spec, fused_linear_cross_entropy=False)  # it has its own head and switches Liger's off
    _fused_head(base)
    without_cache(base)


def _fused_head(base: Any) -> None:
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))


def loss(
    forward: Callable[..., Any], model: nn.Module, inputs: Batch, spec: TraceSpec, training: bool = True
) -> tuple[Any, Any]:
    """SFTTrainer's own loss, which keeps no outputs."""
    items = torch.empty((), dtype=torch.int64, device="cuda")
    return _sft_loss(forward, model, dict(inputs), items if training else None, training), None


def _sft_loss(forward: Callable[..., Any], model: nn.Module, inputs: Batch, items: Any, training: bool) -> Any:
    """The installed SFTTrainer's own compute_loss, called on as much of a trainer as it looks at."""
    from collections import defaultdict

    import trl

    config: Any = model.config
    text = config.get_text_config()
    balanced = bool(getattr(text, "output_router_logits", False))
    accelerator = SimpleNamespace(parallelism_config=None, gather_for_metrics=lambda tensor: tensor, num_processes=1)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=training),
        accelerator=accelerator,
        aux_loss_enabled=balanced,
        compute_loss_func=None,
        label_smoother=None,
        args=SimpleNamespace(loss_type="nll", average_tokens_across_devices=True),
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        get_tp_size=lambda: 1,
        router_aux_loss_coef=text.router_aux_loss_coef if balanced else 0.0,
        current_gradient_accumulation_steps=1,
    )
    step: Any = trl.SFTTrainer.compute_loss
    return step(trainer, forward, inputs, False, items)
