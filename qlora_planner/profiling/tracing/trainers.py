"""One forward pass and loss, as each trainer computes them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from qlora_planner.profiling.tracing.shadow import give_shadow
from qlora_planner.profiling.tracing.spec import TraceSpec

Batch = dict[str, Any]
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def batch(spec: TraceSpec, vocabulary: int) -> Batch:
    """Token ids, mask and labels of one micro-batch on the device, with the values that models look at."""
    shape = (spec.batch_size, spec.seq_len)
    with _disable_current_modes():
        # Ascending ids: no model compares them with a padding id successfully except by accident.
        ids = torch.arange(spec.batch_size * spec.seq_len).remainder(max(vocabulary - 8, 1)).add(3).view(shape)
        mask = torch.ones(shape, dtype=torch.int64)
        if spec.padding and spec.batch_size > 1:
            mask[-1, spec.seq_len // 2 :] = 0
    return {name: _fake(value) for name, value in (("input_ids", ids), ("attention_mask", mask), ("labels", ids))}


def _fake(value: torch.Tensor) -> torch.Tensor:
    return give_shadow(torch.empty(tuple(value.shape), dtype=value.dtype, device="cuda"), value)


def wrap_forward(model: nn.Module, spec: TraceSpec) -> Callable[..., Any]:
    """The model as accelerate prepares it: autocast around forward, then 16-bit outputs to fp32."""
    if not spec.autocast or spec.compute_dtype == "float32":
        return model
    from accelerate.utils.operations import convert_outputs_to_fp32

    cast = torch.autocast("cuda", dtype=_DTYPES[spec.compute_dtype])
    wrapped: Callable[..., Any] = convert_outputs_to_fp32(cast(model.forward))
    return wrapped


def _fused_head(base: Any) -> None:
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))


@contextlib.contextmanager
def fused_head_on_cuda(spec: TraceSpec) -> Iterator[None]:
    """TRL's chunked log-probabilities take their Triton path: tiles fold in place, products accumulate in place."""
    if spec.trainer != "trl-sft" or spec.trl_version < (1, 15):
        yield
        return
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


@contextlib.contextmanager
def module_kept(model: nn.Module) -> Iterator[None]:
    """Put back what Liger replaces in a modeling module, such as its rotary embedding."""
    modules = (sys.modules[type(model).__module__], torch.nn.functional)
    kept = [(module, dict(vars(module))) for module in modules]
    try:
        yield
    finally:
        for module, before in kept:
            for name, value in before.items():
                if vars(module).get(name) is not value:
                    setattr(module, name, value)


def prepare_head(base: nn.Module, spec: TraceSpec) -> None:
    """Give the model the head, and the kernels, that the trainer gives it."""
    if spec.liger:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        # SFTTrainer has its own head since 1.15 and switches Liger's off.
        own_head = spec.trainer == "trl-sft" and spec.trl_version >= (1, 15)
        _apply_liger_kernel_to_instance(model=base, **({"fused_linear_cross_entropy": False} if own_head else {}))
    if spec.trainer == "trl-sft" and spec.trl_version >= (1, 15):
        _fused_head(base)
    elif spec.trainer == "trl-sft":
        from qlora_planner.profiling.tracing.older_trl import add_chunked_head

        add_chunked_head(base, spec)


def loss_of(forward: Callable[..., Any], model: nn.Module, inputs: Batch, spec: TraceSpec) -> tuple[Any, Any]:
    """The loss, and what the caller keeps alive through backward (the plain loop keeps its outputs)."""
    if spec.trainer == "loop":
        outputs = forward(input_ids=inputs["input_ids"], labels=inputs["input_ids"])
        return outputs.loss, outputs
    items = torch.empty((), dtype=torch.int64, device="cuda")
    if spec.trainer == "hf-trainer":
        outputs = forward(**inputs, num_items_in_batch=items)
        return outputs["loss"], None
    if spec.trl_version >= (1, 15):
        return _sft_loss(forward, model, dict(inputs), items), None
    from qlora_planner.profiling.tracing.older_trl import older_sft_loss

    return older_sft_loss(forward, model, dict(inputs), items, spec), None


def _sft_loss(forward: Callable[..., Any], model: nn.Module, inputs: Batch, items: Any) -> Any:
    """The installed SFTTrainer's own compute_loss, called on as much of a trainer as it looks at."""
    from collections import defaultdict

    import trl

    accelerator = SimpleNamespace(parallelism_config=None, gather_for_metrics=lambda tensor: tensor, num_processes=1)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        aux_loss_enabled=False,
        compute_loss_func=None,
        label_smoother=None,
        args=SimpleNamespace(loss_type="nll", average_tokens_across_devices=True),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        get_tp_size=lambda: 1,
        router_aux_loss_coef=0.0,
        current_gradient_accumulation_steps=1,
    )
    step: Any = trl.SFTTrainer.compute_loss
    return step(trainer, forward, inputs, False, items)
