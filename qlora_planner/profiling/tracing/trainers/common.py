"""What every trainer's step is traced with: a batch, the forward that accelerate prepares, Liger's kernels."""

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
from qlora_planner.train import losses

Batch = dict[str, Any]
IGNORED = -100
_LOCKS = 128  # of four bytes, in one block of torch's allocator


def batch(spec: TraceSpec, vocabulary: int) -> Batch:
    """Token ids, mask and labels of one micro-batch on the device, with the values that models look at."""
    rows, length = shape = (spec.sequences, spec.run.seq_len)
    with _disable_current_modes():
        # Ascending ids: no model compares them with a padding id successfully except by accident.
        ids = torch.arange(rows * length).remainder(max(vocabulary - 8, 1)).add(3).view(shape)
        mask = torch.ones(shape, dtype=torch.int64)
        if spec.run.padding and rows > 1:
            mask[-1, length // 2 :] = 0
        labels = ids.masked_fill(mask == 0, IGNORED)
    return {
        name: fake(value, spec.device_name)
        for name, value in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))
    }


def labelled(rows: Batch, labels: int, spec: TraceSpec) -> Batch:
    """A batch for a sequence classifier: one of `labels` for each row in place of one for each token."""
    count = rows["input_ids"].shape[0]
    with _disable_current_modes():
        classes = torch.arange(count).remainder(labels)
    return {**rows, "labels": fake(classes, spec.device_name)}


def fake(value: torch.Tensor, device: str) -> torch.Tensor:
    """A fake tensor on the device that carries its values."""
    return give_shadow(torch.empty(tuple(value.shape), dtype=value.dtype, device=device), value)


def wrap_forward(model: nn.Module, spec: TraceSpec) -> Callable[..., Any]:
    """The model as accelerate prepares it: autocast around forward, then 16-bit outputs to fp32."""
    if not spec.trainer.autocast or spec.compute_dtype is torch.float32:
        return model
    from accelerate.utils.operations import convert_outputs_to_fp32

    cast = torch.autocast("cuda", dtype=spec.compute_dtype)
    wrapped: Callable[..., Any] = convert_outputs_to_fp32(cast(model.forward))
    return wrapped


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


@contextlib.contextmanager
def no_patches(_spec: TraceSpec) -> Iterator[None]:
    """For a trainer whose step takes the same path on a CPU as on CUDA."""
    yield


@contextlib.contextmanager
def kernel_patches(spec: TraceSpec) -> Iterator[None]:
    """For a trainer that takes the same path on a CPU as on CUDA, with whatever computes its loss."""
    if spec.run.loss_kernel != "cut-cross-entropy":
        yield
        return
    from cut_cross_entropy import cce, cce_backward, cce_lse_forward, indexed_dot

    with (
        # Compiled functions: the sort makes the same tensors when it is run as it is written, the cap of logits one.
        mock.patch.object(cce, "sort_logit_avg", lambda average: torch.argsort(average).to(torch.int32)),
        mock.patch.object(indexed_dot, "softcapping", lambda logits, _cap: torch.empty_like(logits)),
        # Tables of locks, a few KiB rounded up by the width: one lock a token and a word, and one block of the
        # allocator for those of 128 tokens each, so that sizes of other lengths and models follow from these.
        mock.patch.object(cce_backward, "triton", SimpleNamespace(cdiv=lambda size, of: 1 if of == 64 else size)),
        mock.patch.object(cce_lse_forward, "triton", SimpleNamespace(cdiv=lambda _size, _of: _LOCKS)),
    ):
        yield


def apply_liger(base: nn.Module, spec: TraceSpec, **options: bool) -> None:
    """Liger's kernels where the run has them."""
    losses.apply_liger(base, spec.run, **options)


def apply_kernels(base: nn.Module, spec: TraceSpec) -> None:
    """Liger's kernels and cut cross-entropy where the run has them."""
    apply_liger(base, spec)
    if spec.run.loss_kernel == "cut-cross-entropy":
        losses.cut_cross_entropy(base)


def without_cache(base: Any) -> None:
    """As transformers/trainer.py sets `use_cache`: to args.use_cache, which is off by default."""
    base.config.use_cache = False


def loss_by_row(loss: Any, rows: int) -> None:
    """What `Trainer.evaluate` makes of a batch's loss: one a row, to be gathered."""
    loss.detach().mean().repeat(rows)
