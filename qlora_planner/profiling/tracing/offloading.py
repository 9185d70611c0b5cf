"""TRL's activation offloading, its own class, with streams and events that do nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn

from qlora_planner.profiling.tracing.spec import TraceSpec


class _Stream:
    """A stream on which everything is already done."""

    def _nothing(self, *_args: Any, **_kwargs: Any) -> None:
        return None

    wait_event = wait_stream = record_event = synchronize = _nothing


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    import trl.models.activation_offloading as offloading

    stream = _Stream()
    device = SimpleNamespace(
        Stream=_Stream,
        current_stream=lambda: stream,
        default_stream=lambda: stream,
        empty_cache=lambda: None,
        stream=lambda _stream: contextlib.nullcontext(),
    )

    def key(tensor: torch.Tensor) -> tuple[int, torch.dtype]:
        return tensor.untyped_storage()._cdata + tensor.storage_offset(), tensor.dtype

    # The callback at the end of backward drops what leaving the context drops; the engine would want a stream for it.
    original = torch.autograd.Variable._execution_engine
    engine = SimpleNamespace(
        run_backward=original.run_backward,
        queue_callback=lambda _callback: None,
        is_checkpoint_valid=original.is_checkpoint_valid,
    )
    with (
        mock.patch.object(offloading, "_get_unique_tensor_key", key),
        mock.patch.object(torch.Tensor, "record_stream", lambda _tensor, _stream: None),
        mock.patch("torch.accelerator.current_accelerator", lambda *_args: torch.device("cuda")),
        mock.patch("torch.get_device_module", lambda _device: device),
        mock.patch.object(torch.autograd.Variable, "_execution_engine", engine),
    ):
        yield


@contextlib.contextmanager
def activation_offloading(model: nn.Module, spec: TraceSpec) -> Iterator[Any]:
    """A context for each training step, and the stand-ins it needs for as long as tracing lasts."""
    if not spec.activation_offloading or spec.trainer != "trl-sft":
        yield contextlib.nullcontext()
        return
    from trl.models.activation_offloading import get_act_offloading_ctx_manager

    with _stand_ins():
        yield get_act_offloading_ctx_manager(model, use_pin_memory=False)
