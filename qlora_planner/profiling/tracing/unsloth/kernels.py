"""Unsloth's kernels while they are recorded: nothing is launched, and what their own code allocates is noted."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn

from qlora_planner.errors import MissingError
from qlora_planner.profiling.tracing.cuda.traits import CudaTraits
from qlora_planner.profiling.tracing.recorder import Recorder
from qlora_planner.profiling.tracing.unsloth.device import CudaByIndex

# From so many rows on the loss goes over the words in tiles, on a card of more than 24.5 GiB; on others always.
ROWS_ON_LARGE_CARDS = 4096


@contextlib.contextmanager
def launched_plainly(traits: CudaTraits) -> Iterator[None]:
    """Triton's kernels by its own launcher, which is idle on fake tensors, and scratch buffers of this trace alone.
    Raises MissingError where one failed.

    Of a loop over chunks of rows or of words the first is recorded: the others reuse its buffers, and none is larger.
    """
    from unsloth.kernels import triton_launch, utils
    from unsloth.models import llama
    from unsloth_zoo.fused_losses import fused_linear

    def wide_results(_device: torch.device, dtype: torch.dtype = torch.float16) -> bool:
        """Its trial of a product with a float32 result, which bfloat16 has where the card has bfloat16."""
        return traits.bfloat16 or dtype is torch.float16

    small = traits.memory_bytes <= fused_linear._SMALL_CARD_BYTES
    failed: set[torch.device] = set()
    with (
        mock.patch.object(fused_linear, "_TRITON_BROKEN", failed),
        mock.patch.object(triton_launch, "_ENABLED", False),
        # Taken from torch at import where its build has CUDA: answering in torch's place comes too late.
        mock.patch.object(utils, "_gpu_getCurrentRawStream", lambda _index=0: 0),
        mock.patch.object(llama, "torch", CudaByIndex()),
        mock.patch.object(llama, "DEVICE_COUNT", 1),
        mock.patch.dict(utils._SCRATCH, clear=True),
        mock.patch.object(fused_linear, "_flash_min_rows", lambda _device: 0 if small else ROWS_ON_LARGE_CARDS),
        mock.patch.object(fused_linear, "_fp32_out_ok", wide_results),
        mock.patch.object(fused_linear, "range", _first_of_steps, create=True),
    ):
        yield
    if failed:  # its loss then goes on without Triton, as on a card it would not
        raise MissingError("Unsloth's loss did not run by its own kernels while a step was recorded")


def _first_of_steps(*bounds: int) -> range:
    return range(*bounds)[:1] if len(bounds) == 3 else range(*bounds)


def replacements() -> dict[Any, Callable[..., Any]]:
    """Its operators as their own bodies allocate: the loss over some rows at a time (fused_losses/fused_linear.py)."""
    from unsloth_zoo.fused_losses import fused_linear

    return {getattr(torch.ops.unsloth_zoo, fused_linear._CE_OP).default: fused_linear._ce_checked}


@contextlib.contextmanager
def norms_announced() -> Iterator[None]:
    """Norms are called as functions: whoever watches modules is told, as it would be of the module's own call."""
    from unsloth.kernels import fast_rms_layernorm

    def announced(norm: nn.Module, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        for hook in list(nn.modules.module._global_forward_pre_hooks.values()):
            hook(norm, (hidden,))
        return fast_rms_layernorm(norm, hidden, *args, **kwargs)

    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("unsloth.models.") and vars(module).get("fast_rms_layernorm") is fast_rms_layernorm:
                stack.enter_context(mock.patch.object(module, "fast_rms_layernorm", announced))
        yield


@contextlib.contextmanager
def buffers_on_host(recorder: Recorder) -> Iterator[None]:
    """Each buffer for a layer's input in the host's memory is noted, but not those that wait there from the start."""
    from unsloth_zoo import gradient_checkpointing

    make = gradient_checkpointing._new_host_buffer

    def noted(numel: int, dtype: torch.dtype) -> torch.Tensor:
        buffer: torch.Tensor = make(numel, dtype)
        if numel > gradient_checkpointing.INITIAL_CPU_BUFFER_SIZE:
            recorder.born_on_host(buffer, "offloaded")
        return buffer

    with mock.patch.object(gradient_checkpointing, "_new_host_buffer", noted):
        yield
