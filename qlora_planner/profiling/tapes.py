"""Tapes of runs: traced from the installed model code, on fake tensors."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from qlora_planner.errors import PlannerError
from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.profiling.build import ConfigSource
from qlora_planner.profiling.refusals import traced_fault
from qlora_planner.profiling.text_part import text_part
from qlora_planner.profiling.tracing.apart import sees_no_card, stands_in, trace_apart
from qlora_planner.profiling.tracing.cuda.semantics import CudaTraits
from qlora_planner.profiling.tracing.engine import trace
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.whole import whole_config
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.run import RunConfig
from qlora_planner.spec.trace import Tape

# Streaming multiprocessors decide which of bitsandbytes' kernels run on short batches; by compute capability of the
# cards most used, from NVIDIA's whitepapers.
_MULTIPROCESSORS = {(7, 5): 40, (8, 0): 108, (8, 6): 82, (8, 9): 128, (9, 0): 132, (10, 0): 148, (12, 0): 170}


def efficiency_of(gpu: GpuSpec | None) -> CudaTraits:
    """The facts of a card that decide which kernels run; an unknown card is taken as an H200."""
    if gpu is None:
        return CudaTraits()
    if gpu.compute_capability is None:
        return CudaTraits(memory_bytes=gpu.memory_bytes)
    major, minor = (int(part) for part in gpu.compute_capability.split("."))
    units = _MULTIPROCESSORS.get((major, minor), 80)
    return CudaTraits(capability=(major, minor), multiprocessors=units, memory_bytes=gpu.memory_bytes)


def traced_config(source: ConfigSource, run: RunConfig) -> Mapping[str, Any]:
    """The config of what a run is of: the whole model where it shows images, else the text part."""
    if run.shows_images:
        return whole_config(source.config, source.id)
    return text_part(source.config, source.id)[0]


def trace_run(source: ConfigSource, resolution: Resolution, gpu: GpuSpec | None) -> Tape:
    """Trace exactly this run; a few seconds.

    Raises RefusedError in a library's words where the real run would break too, MissingError naming what tracing does
    not follow: an option, or model code that fake tensors cannot run.
    """
    try:
        spec = TraceSpec(resolution=resolution, device=efficiency_of(gpu))
        patched = resolution.trainer.patches_libraries and resolution.trainer.packages[0] not in sys.modules
        if patched or (sees_no_card() and not stands_in()):
            return trace_apart(traced_config(source, resolution.run), spec, source.id)
        return trace(traced_config(source, resolution.run), spec)
    except PlannerError:
        raise
    except Exception as error:  # any model code may fail on fake tensors; the cause is passed on
        raise traced_fault(error, source.id) from error
