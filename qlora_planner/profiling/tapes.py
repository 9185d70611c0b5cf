"""Tapes of runs: traced from the installed model code, on fake tensors."""

from __future__ import annotations

import re
from dataclasses import replace

from qlora_planner.errors import MissingError
from qlora_planner.hardware import GpuSpec
from qlora_planner.memory.resolve import Resolution
from qlora_planner.memory.variant import Region, variant_key
from qlora_planner.profile.tape import CompiledTape, Tape
from qlora_planner.profiling.build import ConfigSource
from qlora_planner.profiling.compile import Point, compile_tapes
from qlora_planner.profiling.tracing.cuda_semantics import CudaTraits
from qlora_planner.profiling.tracing.engine import trace
from qlora_planner.profiling.tracing.spec import TraceSpec

# Streaming multiprocessors decide which of bitsandbytes' kernels run on short batches; by compute capability of the
# cards most used, from NVIDIA's whitepapers.
_MULTIPROCESSORS = {(7, 5): 40, (8, 0): 108, (8, 6): 82, (8, 9): 128, (9, 0): 132, (10, 0): 148, (12, 0): 170}


def traits_of(gpu: GpuSpec | None) -> CudaTraits:
    """The facts of a card that decide which kernels run; an unknown card is taken as an H200."""
    if gpu is None or gpu.compute_capability is None:
        return CudaTraits()
    major, minor = (int(part) for part in gpu.compute_capability.split("."))
    return CudaTraits(capability=(major, minor), multiprocessors=_MULTIPROCESSORS.get((major, minor), 80))


def compile_run(source: ConfigSource, resolution: Resolution, gpu: GpuSpec | None, region: Region) -> CompiledTape:
    """One tape for every batch (above 1, if the run's is), sequence and rank in `region`.

    Raises MissingError as `trace_run` does, NotPolynomialError when something switches inside the region.
    """
    run = resolution.run

    def trace_at(point: Point) -> Tape:
        batch, seq, rank = point
        sized = replace(resolution, run=run.with_(batch_size=batch, seq_len=seq, rank=rank))
        return trace_run(source, sized, gpu)

    top = min(region.high, max(2 * region.low, 4096))
    span = top - region.low
    seqs = [region.low + -(-span * part // 16 // 64) * 64 for part in (3, 7, 11, 15)]
    if not region.batched:
        points = list(zip((1, 1, 1, 1), seqs, (8, 24, 56, 40), strict=True))
    else:
        # Two points more, because the batch makes a third unknown; large batches, so that no tile is left half full.
        batches = (8, 9, 11, 10, 9, 8)
        points = list(zip(batches, [*seqs, seqs[0], seqs[2]], (8, 24, 56, 40, 16, 72), strict=True))
    return compile_tapes(trace_at, points[:-1], points[-1], variant_key(run, resolution.stack, gpu))


def trace_run(source: ConfigSource, resolution: Resolution, gpu: GpuSpec | None) -> Tape:
    """Trace exactly this run; a few seconds.

    Raises MissingError naming what tracing does not follow: an option, or model code that fake tensors cannot run.
    """
    try:
        spec = TraceSpec.of(resolution.run, resolution.stack, traits_of(gpu))
        return trace(source.config, spec)
    except Exception as error:  # any model code may fail on fake tensors; the cause is passed on
        words = re.sub(r"\s+", " ", str(error)).strip()[:200]
        raise MissingError(f"{source.id} cannot be traced for this run: {type(error).__name__}: {words}") from error
