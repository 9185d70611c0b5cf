"""TRL's activation offloading, its own class, with streams and events that do nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn

from qlora_planner.profiling.tracing.recorder import Recorder
from qlora_planner.profiling.tracing.spec import TraceSpec


class _Stream:
    """A stream on which everything is already done."""

    def _nothing(self, *_args: Any, **_kwargs: Any) -> None:
        return None

    wait_event = wait_stream = record_event = synchronize = _nothing


@contextlib.contextmanager
def _stand_ins(recorder: Recorder) -> Iterator[None]:
    import trl.models.activation_offloading as offloading

    main = _Stream()

    @contextlib.contextmanager
    def on_stream(stream: _Stream) -> Iterator[None]:
        before, recorder.side_stream = recorder.side_stream, stream is not main
        try:
            yield
        finally:
            recorder.side_stream = before

    device = SimpleNamespace(
        Stream=_Stream,
        current_stream=lambda: main,
        default_stream=lambda: main,
        empty_cache=lambda: None,  # played from the run: memory/replay/player.py
        stream=on_stream,
    )
    # The callback at the end of backward drops what leaving the context drops; the engine would want a stream for it.
    original = torch.autograd.Variable._execution_engine
    engine = SimpleNamespace(
        run_backward=original.run_backward,
        queue_callback=lambda _callback: None,
        is_checkpoint_valid=original.is_checkpoint_valid,
    )
    with (
        # Storages of fake tensors have no address: their record's stands in, far apart for offsets to be added.
        mock.patch.object(torch.UntypedStorage, "data_ptr", lambda storage: storage._cdata << 40),
        mock.patch.object(offloading, "torch", _NotingTorch(recorder)),
        # accelerate's logger refuses to speak before there is an Accelerator: of a model without an output head.
        mock.patch.object(offloading, "logger", SimpleNamespace(warning=lambda *_: None)),
        mock.patch.object(torch.Tensor, "record_stream", lambda _tensor, _stream: None),
        mock.patch("torch.accelerator.current_accelerator", lambda *_args: torch.device("cuda")),
        mock.patch("torch.get_device_module", lambda _device: device),
        mock.patch.object(torch.autograd.Variable, "_execution_engine", engine),
    ):
        yield


class _NotingTorch:
    """torch as trl's module sees it, telling the recorder of each tensor made on the host."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def _on_host(self, tensor: torch.Tensor) -> torch.Tensor:
        self._recorder.born_on_host(tensor, "offloaded")
        return tensor

    def empty(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Space for a broadcast tensor's storage."""
        return self._on_host(torch.empty(*args, **kwargs))

    def empty_like(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Space for a tensor."""
        return self._on_host(torch.empty_like(*args, **kwargs))


@contextlib.contextmanager
def activation_offloading(model: nn.Module, spec: TraceSpec, recorder: Recorder) -> Iterator[Any]:
    """A context for each training step, and the stand-ins it needs for as long as tracing lasts."""
    if not spec.run.activation_offloading or "activation_offloading" not in spec.trainer.own_options:
        yield contextlib.nullcontext()
        return
    from trl.models.activation_offloading import get_act_offloading_ctx_manager

    with _stand_ins(recorder):
        yield get_act_offloading_ctx_manager(model, use_pin_memory=False)


@contextlib.contextmanager
def inputs_on_host(recorder: Recorder) -> Iterator[None]:
    """torch's `save_on_cpu`, which transformers wraps around checkpointed layers, taken for a copy off a CUDA card.

    Its copies are made on the stream that computes (torch 2.13, autograd/graph.py), so nothing waits in a second cache.
    """
    with (
        mock.patch("torch.accelerator.current_accelerator", lambda *_args: torch.device("cuda")),
        mock.patch.object(torch.autograd.graph, "torch", _NotingTorch(recorder)),
    ):
        yield
