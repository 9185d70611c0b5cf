"""What a tracing test traces: a run with every option named, and the stack and device that it names."""

from __future__ import annotations

from typing import Any

from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.profiling.tracing.cuda.traits import CudaTraits
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.spec.run import RunConfig

USUAL: dict[str, Any] = {
    "quant": "nf4", "compute_dtype": "bfloat16", "load_dtype": "bfloat16", "seq_len": 1024, "lora_dropout": 0.05,
    "attention": "sdpa", "upcast": True, "padding": False,
}  # fmt: skip


def spec_of(
    *, device: CudaTraits | None = None, on_cpu: bool = False, trl: str = "1.16.0", **options: Any
) -> TraceSpec:
    """A resolved run of USUAL with these options, names of modules given as a tuple or joined by commas."""
    joined = {name: ",".join(value) if isinstance(value, tuple) else value for name, value in options.items()}
    resolution = Resolution.resolved(RunConfig(**(USUAL | joined)), {"trl": trl})
    return TraceSpec(resolution=resolution, device=device or CudaTraits(), on_cpu=on_cpu)
