"""What a run's libraries take on the card beside torch's allocator, against the usual run's.

Read off 241 runs on an H200 (driver 580, CUDA 13.0, torch 2.11) as NVML's figure of the process less what torch had
reserved: 758 MiB wherever cuDNN's attention runs, and else by what is used, with 2 MiB more for grouped products.
"""

from __future__ import annotations

from qlora_planner.spec.run import RunConfig

CUDNN_ATTENTION_BYTES = 16 << 20  # its kernels; without it 742 MiB
INT8_BYTES = 64 << 20  # bitsandbytes' cuBLASLt handle of its own: 822 MiB
SECOND_STREAM_BYTES = 70 << 20  # copies beside the computation: 828 MiB


def library_bytes(run: RunConfig, copies_beside: bool = False) -> int:
    """Bytes more (or, below zero, less) than a run with fused attention and 4-bit or 16-bit weights takes.

    `copies_beside`: its trainer moves layers' inputs to the host and back on a stream of its own.
    """
    extra_bytes = 0
    if run.attention == "eager":
        extra_bytes -= CUDNN_ATTENTION_BYTES
    if run.quant == "int8":
        extra_bytes += INT8_BYTES
    if run.activation_offloading or copies_beside:
        extra_bytes += SECOND_STREAM_BYTES
    return extra_bytes
