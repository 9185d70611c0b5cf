"""What a CUDA device does that fake tensors do not show. Every departure from the fake run is in these modules.

* `cuda_traits`: the facts of a device on which the rest depends, and the workspaces that libraries keep;
* `cuda_attention`: which kernel `scaled_dot_product_attention` picks, and what it copies;
* `cuda_scratch`: scratch memory inside kernels;
* `cuda_bitsandbytes`: bitsandbytes' operators.
"""

from __future__ import annotations

from qlora_planner.profiling.tracing.cuda.attention import attention_backend, attention_function
from qlora_planner.profiling.tracing.cuda.bitsandbytes import bitsandbytes_replacements
from qlora_planner.profiling.tracing.cuda.scratch import ENGINE_IN_PLACE, LATE_RESULTS, SCRATCH, grouped_mm
from qlora_planner.profiling.tracing.cuda.traits import CudaTraits

__all__ = [
    "ENGINE_IN_PLACE",
    "LATE_RESULTS",
    "SCRATCH",
    "CudaTraits",
    "attention_backend",
    "attention_function",
    "bitsandbytes_replacements",
    "grouped_mm",
]
