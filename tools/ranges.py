"""Tapes for whole ranges of sizes: a run traced at a few of them and compiled."""

from __future__ import annotations

from dataclasses import replace

from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.memory.sweep.validity import ValidityRange, trace_key
from qlora_planner.profiling.build import ConfigSource
from qlora_planner.profiling.tapes import trace_run
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.trace import CompiledTape, Tape
from tools.compiling import NotPolynomialError, Point, compile_tapes, points_in


def compile_run(
    source: ConfigSource, resolution: Resolution, gpu: GpuSpec | None, region: ValidityRange
) -> CompiledTape:
    """One tape for every batch (above 1, if the run's is), sequence and rank in `region`.

    Raises MissingError as `trace_run` does, NotPolynomialError when something switches inside the region.
    """
    run = resolution.run
    if run.activation_offloading or run.checkpoint_offload or run.eval_batch_size is not None:
        raise NotPolynomialError("offloaded activations and evaluations are traced run by run")
    if run.shows_images:
        raise NotPolynomialError("runs with images are traced one by one: their tower is of one size of image")
    if not resolution.trainer.one_pass:
        raise NotPolynomialError(f"{resolution.trainer.name} is traced run by run: ranges of sizes are of one pass")

    def trace_at(point: Point) -> Tape:
        batch, seq, rank = point
        sized = replace(resolution, run=run.with_(batch_size=batch, seq_len=seq, rank=rank))
        return trace_run(source, sized, gpu)

    points = points_in(region)
    return compile_tapes(trace_at, points[:-1], points[-1], trace_key(run, resolution.stack, gpu))
