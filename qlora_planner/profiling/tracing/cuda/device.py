"""Fake CUDA tensors on a machine, or a torch build, without CUDA.

Tracing on fake *CUDA* tensors lets torch itself decide what only CUDA decides: autocast's operator lists, the boolean
mask of native_dropout, which optimizers fuse, what each attention kernel saves. Three things stand in the way on a
build without CUDA, and each is lifted only inside `fake_cuda()`:

* every tensor operation asks for a device guard, and none is registered for CUDA: Meta's guard, which does nothing,
  lends itself; on CUDA builds without a visible GPU torch puts one that does nothing in its place;
* the autograd engine would hand the work to a device thread, which does not exist: its threads are switched off;
* the engine asks tensors for their device to synchronise streams: the dispatch mode of `recorder` answers "cpu" when
  it is the engine itself that asks (`is_engine_frame`).
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.autograd.graph import _engine_run_backward

CUDA_INDEX, META_INDEX, DEVICE_TYPES = 1, 14, 21  # torch/headeronly/core/DeviceType.h
_REGISTRY_SYMBOL = "_ZN3c104impl26device_guard_impl_registryE"
_ENGINE_CODE = _engine_run_backward.__code__
_WRAPPER_NAMES = frozenset({"_fn", "inner", "__torch_dispatch__"})


def caller_frame(depth: int = 2) -> FrameType:
    """The nearest frame that is not torch's own wrapping of a dispatch mode."""
    frame = sys._getframe(depth)
    while frame.f_code.co_name in _WRAPPER_NAMES and frame.f_back is not None:
        frame = frame.f_back
    return frame


def is_engine_frame(frame: FrameType) -> bool:
    """Whether autograd's C++ engine, rather than Python code, made this call."""
    return frame.f_code is _ENGINE_CODE


@contextlib.contextmanager
def _device_guard() -> Iterator[None]:
    torch._C._ensureCUDADeviceGuardSet()  # FakeTensorMode's own call, which it spares where a GPU seems to be there
    libraries = Path(torch.__file__).parent / "lib"
    name = {"darwin": "libc10.dylib", "win32": "c10.dll"}.get(sys.platform, "libc10.so")
    registry: Any = (ctypes.c_void_p * DEVICE_TYPES).in_dll(ctypes.CDLL(str(libraries / name)), _REGISTRY_SYMBOL)
    before = registry[CUDA_INDEX]
    if before is None:
        registry[CUDA_INDEX] = registry[META_INDEX]
    try:
        yield
    finally:
        registry[CUDA_INDEX] = before


def _not_computed(*_args: Any, **_kwargs: Any) -> Any:
    raise NotImplementedError("fake tensors only")


@contextlib.contextmanager
def _own_kernels() -> Iterator[None]:
    """Keep operators whole that CUDA runs as one kernel but that torch would otherwise take apart.

    An operator with both a composite and a device kernel is composite on a build that lacks the device's.
    """
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    library = torch.library.Library("aten", "IMPL")
    try:
        for name in ("silu_backward", "mish_backward"):
            if not has(f"aten::{name}", "CUDA"):
                library.impl(name, _not_computed, "CUDA")
        yield
    finally:
        library._destroy()


@contextlib.contextmanager
def _idle_triton() -> Iterator[None]:
    """Triton kernels write into tensors that exist already; launched on fake ones they do nothing."""
    try:
        from triton.runtime import autotuner, jit
    except ImportError:
        yield
        return
    with contextlib.ExitStack() as stack:
        for launcher in (jit.JITFunction, autotuner.Autotuner, autotuner.Heuristics):
            stack.enter_context(mock.patch.object(launcher, "run", lambda *_args, **_kwargs: None))
        yield


@contextlib.contextmanager
def fake_cuda(
    *, bfloat16: bool = True, capability: tuple[int, int] = (9, 0), multiprocessors: int = 132
) -> Iterator[None]:
    """Within this context fake tensors may live on device "cuda", be indexed, autocast and differentiated."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_device_guard())
        stack.enter_context(_own_kernels())
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        # torch.autocast("cuda") disables itself, with a warning, where it finds no CUDA.
        stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False))
        stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", return_value=bfloat16))
        properties = SimpleNamespace(
            multi_processor_count=multiprocessors,
            major=capability[0],
            minor=capability[1],
            name="fake",
            warp_size=32,
        )
        stack.enter_context(mock.patch("torch.cuda.get_device_properties", lambda *_args: properties))
        stack.enter_context(mock.patch("torch.cuda.get_device_capability", lambda *_args: capability))
        for name in ("_exchange_device", "_maybe_exchange_device"):  # what `torch.cuda.device(...)` calls
            stack.enter_context(mock.patch(f"torch.cuda.{name}", lambda _index: 0))
        stack.enter_context(_idle_triton())
        yield
