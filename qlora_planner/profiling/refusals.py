"""What the installed libraries refuse for one model: asked of their own code, by tracing short runs.

No list of architectures is kept here. A run is traced on fake tensors; an exception that the model, PEFT, trl or
bitsandbytes raises is what the real run would meet.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_planner.errors import MissingError, PlannerError, RefusedError
from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.profiling.tracing.refused import CudaRefusalError
from qlora_planner.spec.run import RunConfig

_LIBRARIES = ("transformers", "peft", "trl", "bitsandbytes", "accelerate", "liger_kernel")
# Shapes that do not go together: torch raises them below the model's code, on fake tensors as on real ones.
_SHAPES = ("broadcast", "must match", "shape", "mat1 and mat2")
# What tracing itself may fail with, which says nothing about the real run.
_TRACING = ("FakeTensor", "DataDependent", "meta", "fake", "__torch_dispatch__", "SymInt", "functorch")
_OF_LIBRARIES = (ValueError, TypeError, AttributeError, NotImplementedError, KeyError, IndexError, RuntimeError)
# Long enough to be past every special case of a few tokens, short enough to take a second.
PROBE_TOKENS = 128


def refused_by(error: BaseException) -> str | None:
    """The library that raised `error` as it would in the real run, or None where tracing itself may be the cause."""
    words = f"{type(error).__name__} {error}"
    if not isinstance(error, _OF_LIBRARIES) or any(mark in words for mark in _TRACING):
        return None
    frames = [Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__)]
    libraries = [next((name for name in _LIBRARIES if name in parts), None) for parts in frames]
    if libraries[-1] is None and not isinstance(error, CudaRefusalError):
        below_torch = "torch" in frames[-1] and any(mark in words for mark in _SHAPES)
        if not below_torch:
            return None
    return next((name for name in reversed(libraries) if name is not None), None)


def words_of(error: BaseException) -> str:
    """An exception on one line of at most 200 characters."""
    text = re.sub(r"\s+", " ", str(error)).strip()[:200]
    return f"{type(error).__name__}: {text}"


@dataclass(slots=True)
class Prober:
    """Asks once per class and target: models of one class run the same code."""

    known: dict[tuple[str, ...], str | None] = field(default_factory=dict)

    def refusal(self, raw: Mapping[str, Any], key: tuple[str, ...], **options: Any) -> str | None:
        """Why a short run with these options breaks in a library's code; None where it does not."""
        whole = (*key, *(f"{name}={value}" for name, value in sorted(options.items())))
        if whole not in self.known:
            self.known[whole] = _probe(raw, **options)
        return self.known[whole]


def _probe(raw: Mapping[str, Any], **options: Any) -> str | None:
    from qlora_planner.profiling.tracing.engine import trace
    from qlora_planner.profiling.tracing.spec import TraceSpec

    usual: dict[str, Any] = {
        "quant": "nf4", "seq_len": PROBE_TOKENS, "rank": 8, "lora_dropout": 0.0, "upcast": False,
        "optimizer": "adamw_torch", "trainer": "hf-trainer",
    }  # fmt: skip
    resolution = Resolution.resolved(RunConfig(**(usual | options)), stack={})
    try:
        trace(raw, TraceSpec(resolution=resolution))
    except Exception as error:  # any model code may raise anything; what is no refusal is left to the real trace
        library = refused_by(error)
        return None if library is None else f"{library} fails with {words_of(error)}"
    return None


def traced_fault(error: Exception, what: str) -> PlannerError:
    """What tracing raised as RefusedError (a library's own refusal) or MissingError (tracing cannot follow)."""
    library = refused_by(error)
    if library is not None:
        return RefusedError(f"{what} will not run: {library} fails with {words_of(error)}")
    return MissingError(f"{what} cannot be traced for this run: {words_of(error)}{_without_card()}")


def _without_card() -> str:
    """The usual cause where torch is a build for CUDA and sees no card: its autograd engine asks the driver for one."""
    from qlora_planner.profiling.tracing.apart import sees_no_card, stands_in

    if not sees_no_card() or stands_in():
        return ""
    return (
        "; torch here is a build for CUDA and sees no card, where backward cannot be traced: it can with torch's CPU"
        " build (pip install torch --index-url https://download.pytorch.org/whl/cpu)"
    )
