"""trl's kernel for log-probabilities and entropy of whole logits, which a CUDA card takes, on a machine without Triton.

Triton comes with torch's CUDA builds for Linux, not with its CPU builds. Without it trl 1.16 scores row by row, and
backward holds the float32 gradients of each row beside those of all, which a step on the card does not.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

from qlora_planner.profiling.tracing.spec import TraceSpec

MODULE = "trl.kernels.logprob_entropy"


class IdleKernel:
    """A Triton kernel that is launched on fake tensors: what it writes into was made by its caller."""

    def __init__(self, _function: Any) -> None: ...

    def __getitem__(self, _grid: Any) -> Callable[..., None]:
        return self.run

    def run(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing; a counter of kernels puts itself here."""


@contextlib.contextmanager
def patches(_spec: TraceSpec) -> Iterator[None]:
    """trl scores whole logits as it does on a CUDA card. Tensors of a CPU keep to the rows."""
    import trl.trainer.utils as utils

    if not hasattr(utils, "_fused_logprob_entropy") and not hasattr(utils, "_supports_trl_loss_kernel"):
        yield  # a trl that has no such kernel
        return
    if importlib.util.find_spec("triton") is not None:
        yield
        return
    scores = _module().selective_log_softmax_and_entropy
    with (
        mock.patch.object(utils, "_fused_logprob_entropy", scores, create=True),
        mock.patch.object(utils, "is_triton_available", lambda: True),
    ):
        yield


def _module() -> ModuleType:
    """trl's own code around the kernels, imported once with a stand-in for what declares them."""
    triton, language = ModuleType("triton"), ModuleType("triton.language")
    vars(triton).update(jit=IdleKernel, cdiv=lambda a, b: -(-a // b), language=language)
    vars(language).update(constexpr=int)
    with mock.patch.dict(sys.modules, {"triton": triton, "triton.language": language}):
        module = importlib.import_module(MODULE)
    sys.modules[MODULE] = module  # mock.patch.dict forgets what was imported within it
    return module


__all__ = ("MODULE", "IdleKernel", "patches")
