"""One forward pass and loss, as each trainer computes them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from qlora_planner.profiling.tracing.shadow import give_shadow
from qlora_planner.profiling.tracing.spec import TraceSpec

Batch = dict[str, Any]
IGNORED = -100
# The first trl whose collator hands over where packed sequences begin.
BOUNDARIES_VERSION = (1, 16)
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def batch(spec: TraceSpec, vocabulary: int) -> Batch:
    """Token ids, mask and labels of one micro-batch on the device, with the values that models look at."""
    shape = (spec.batch_size, spec.seq_len)
    if spec.packing:
        return _packed_batch(spec, vocabulary)
    with _disable_current_modes():
        # Ascending ids: no model compares them with a padding id successfully except by accident.
        ids = torch.arange(spec.batch_size * spec.seq_len).remainder(max(vocabulary - 8, 1)).add(3).view(shape)
        mask = torch.ones(shape, dtype=torch.int64)
        if spec.padding and spec.batch_size > 1:
            mask[-1, spec.seq_len // 2 :] = 0
        labels = ids.masked_fill(mask == 0, IGNORED)
    return {
        name: _fake(value, spec.device_name)
        for name, value in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))
    }


def _packed_batch(spec: TraceSpec, vocabulary: int) -> Batch:
    """What trl's padding-free collator hands the model: all rows end to end, each made of two sequences, no mask."""
    length = max(1, spec.seq_len // 2)
    count = 2 * spec.batch_size
    with _disable_current_modes():
        ids = torch.arange(count * length).remainder(max(vocabulary - 8, 1)).add(3).view(1, -1)
        positions = torch.arange(length).repeat(count).view(1, -1)
        labels = ids.masked_fill(positions == 0, IGNORED)
    found: Batch = {
        name: _fake(value, spec.device_name)
        for name, value in (("input_ids", ids), ("labels", labels), ("position_ids", positions))
    }
    if spec.trl_version >= BOUNDARIES_VERSION:
        with _disable_current_modes():
            bounds = torch.arange(count + 1, dtype=torch.int32).mul(length)
            index = torch.arange(count, dtype=torch.int32).repeat_interleave(length).view(1, -1)
        found["cu_seq_lens_q"] = found["cu_seq_lens_k"] = _fake(bounds, spec.device_name)
        found["max_length_q"] = found["max_length_k"] = length
        found["seq_idx"] = _fake(index, spec.device_name)
    return found


def evaluate(forward: Callable[..., Any], model: nn.Module, spec: TraceSpec, vocabulary: int) -> None:
    """One evaluation batch: the loss alone, as `Trainer.evaluate` asks for where no metrics are computed."""
    sized = replace(spec, batch_size=spec.eval_batch_size or 1)
    inputs = batch(sized, vocabulary)
    with torch.no_grad():
        loss, outputs = loss_of(forward, model, inputs, sized, training=False)
    if spec.trainer != "loop":
        loss.detach().mean().repeat(sized.batch_size)
    del outputs


def _fake(value: torch.Tensor, device: str) -> torch.Tensor:
    return give_shadow(torch.empty(tuple(value.shape), dtype=value.dtype, device=device), value)


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


def _balance_experts(base: Any, spec: TraceSpec) -> None:
    """SFTTrainer's load-balancing loss of expert models: 0.001 from trl 1.7, the config's own weight from 1.14."""
    text = base.config.get_text_config()
    if spec.trl_version < (1, 7) or getattr(text, "output_router_logits", None) is None:
        return
    weight = getattr(text, "router_aux_loss_coef", 0.0) if spec.trl_version >= (1, 14) else 0.001
    text.router_aux_loss_coef = weight
    text.output_router_logits = weight != 0.0


def prepare_head(base: nn.Module, spec: TraceSpec) -> None:
    """Give the model the head, and the kernels, that the trainer gives it."""
    if spec.trainer == "trl-sft":
        _balance_experts(base, spec)
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


def loss_of(
    forward: Callable[..., Any], model: nn.Module, inputs: Batch, spec: TraceSpec, training: bool = True
) -> tuple[Any, Any]:
    """The loss, and what the caller keeps alive beside it: the plain loop, and an evaluation, keep the outputs."""
    if spec.trainer == "loop":
        full = {"input_ids": inputs["input_ids"], "labels": inputs["input_ids"]}
        outputs = forward(**(inputs if spec.padding else full))
        return outputs.loss, outputs
    items = torch.empty((), dtype=torch.int64, device="cuda")
    if spec.trainer == "hf-trainer":
        skip = {"skip_logits": True} if spec.liger and not training else {}
        outputs = forward(**inputs, **skip, num_items_in_batch=items)
        return outputs["loss"], None if training else outputs
    if spec.trl_version >= (1, 15):
        return _sft_loss(forward, model, dict(inputs), items if training else None, training), None
    from qlora_planner.profiling.tracing.older_trl import older_sft_loss

    return older_sft_loss(forward, model, dict(inputs), items, spec), None


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
