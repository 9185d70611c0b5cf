"""What Unsloth asks of a CUDA device beside what `cuda/` answers: streams, events, free memory, which kernel runs.

Facts of unsloth and unsloth_zoo 2026.10.9. Their own functions run; nothing of them is copied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses import fake_tensor

from qlora_planner.profiling.tracing.cuda.semantics import CudaTraits, attention_backend

# torch.nn.attention.SDPBackend.
_BACKENDS = {"math": 0, "flash": 1, "efficient": 2, "cudnn": 3}
# More than any question about free memory looks for: half of it for a chunk of logits, 512 MiB for a second buffer.
FREE_BYTES = 16 << 30


class _Ready:
    """A stream or an event on which everything is already done."""

    cuda_stream = 0

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def _nothing(self, *_args: Any, **_kwargs: Any) -> None:
        return None

    wait_event = wait_stream = record = record_event = synchronize = _nothing


class CudaByIndex:
    """torch as a module sees it that names a device by its index alone."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def device(self, of: Any) -> torch.device:
        """The device; an index is of CUDA, which this build may not have."""
        return torch.device("cuda", of) if isinstance(of, int) else torch.device(of)


@contextlib.contextmanager
def ready_device() -> Iterator[None]:
    """Streams and events of a device that is never behind, and its answers to questions about itself."""
    main = _Ready()
    values: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "_lazy_init": lambda: None,
        "current_stream": lambda *_args: main,
        "default_stream": lambda *_args: main,
        "Stream": _Ready,
        "Event": _Ready,
        "mem_get_info": lambda *_args: (FREE_BYTES, 8 * FREE_BYTES),
        "is_current_stream_capturing": lambda: False,
        "synchronize": lambda *_args: None,
        "empty_cache": lambda: None,
    }
    with contextlib.ExitStack() as stack:
        for name, value in values.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        # A device that says it is available is made ready by a tensor of it, which a build with CUDA but without a
        # visible card cannot make.
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", lambda _device: None))
        # Functions that were taken from torch.cuda at import end in these.
        stack.enter_context(mock.patch.object(torch._C, "_cuda_getDevice", lambda: 0, create=True))
        stack.enter_context(mock.patch.object(torch._C, "_cuda_getCurrentRawStream", lambda _index: 0, create=True))
        for name in ("__enter__", "__exit__"):
            stack.enter_context(mock.patch.object(torch.cuda.StreamContext, name, lambda *_args: None))
        yield


def _attention_choice(traits: CudaTraits) -> Callable[..., int]:
    """torch's choice of an attention kernel where Unsloth asks for it by shapes alone."""

    def choice(dtype: Any, width: int, heads: int, key_heads: int, grouped: bool) -> int:
        def like(count: int) -> Any:
            return SimpleNamespace(
                dtype=dtype, shape=(1, count, 128, width), requires_grad=True, dim=lambda: 4, stride=lambda _at: 1
            )

        return _BACKENDS[attention_backend(traits, like(heads), like(key_heads), like(key_heads), None, 0.0, grouped)]

    return choice


@contextlib.contextmanager
def chosen_attention(traits: CudaTraits) -> Iterator[None]:
    """Its questions about attention answered for the device (utils/attention_dispatch.py); what is installed here for
    another device, such as xformers, is left out."""
    from unsloth.utils import attention_dispatch

    choice = _attention_choice(traits)

    def state(_device: str, dtype: Any, width: int, heads: int, keys: int, _causal: bool, grouped: bool) -> Any:
        return True, choice(dtype, width, heads, keys, grouped)

    def of_groups(_device: str, dtype: Any, width: int, heads: int, keys: int, *_more: Any) -> tuple[int, int]:
        return choice(dtype, width, heads, keys, True), choice(dtype, width, heads, heads, False)

    with contextlib.ExitStack() as stack:
        for name, value in (
            ("_sdpa_backend_state", state),
            ("_sdpa_gqa_choices", of_groups),
            ("HAS_XFORMERS", False),
            ("HAS_FLASH_ATTENTION", False),
        ):
            stack.enter_context(mock.patch.object(attention_dispatch, name, value))
        yield
