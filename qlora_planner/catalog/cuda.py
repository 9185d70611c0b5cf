"""Memory that CUDA and its libraries take beside tensors, by card."""

from __future__ import annotations

from qlora_planner.record import record

MIB = 1 << 20
# torch 2.13, sdp_utils.cpp: where cuDNN attends, for whose plans Unsloth pads sequences (utils/attention_dispatch.py).
CUDNN_CAPABILITIES = ("9.0", "10.0")


@record
class ContextRow:
    """Bytes of a process in NVML that torch's allocator does not count.

    `first_tensor_bytes` after the first CUDA tensor; `kernels_bytes` what library kernels add by the end of a step.
    """

    first_tensor_bytes: int
    kernels_bytes: int
    low_bytes: int
    high_bytes: int
    measured: bool
    why: str
    communication_bytes: int = 0  # of `first_tensor_bytes`, what talking to other cards takes
    communication_measured: bool = True
    communication_why: str = ""

    @property
    def total_bytes(self) -> int:
        """What is expected by the end of a step."""
        return self.first_tensor_bytes + self.kernels_bytes


# Measured: H200, driver 580, CUDA 13.0, torch 2.11: 612 MiB after the first tensor, 742 to 828 MiB (median 758) in all
# over 240 runs, all but 10 MiB of it told by the libraries a run uses (spec/libraries.py). Tesla T4: 141 MiB in every
# row of a public archive of runs. Elsewhere: published figures run from 287 MiB (lazy loading, pytorch pull request
# 86509) over 426 MiB (RTX 6000 Ada, torch 2.10 with CUDA 13) to about 616 MiB (a data-centre card, LMCache issue 4019).
_MEASURED: dict[str, ContextRow] = {
    "h200": ContextRow(
        first_tensor_bytes=612 * MIB, kernels_bytes=146 * MIB, low_bytes=748 * MIB, high_bytes=768 * MIB, measured=True,
        why="measured on an H200: 612 MiB after the first tensor, 758 MiB by the end of a step",
    ),
    "t4": ContextRow(
        first_tensor_bytes=141 * MIB, kernels_bytes=0, low_bytes=120 * MIB, high_bytes=290 * MIB, measured=True,
        why="141 MiB in every run of a public Tesla T4 archive",
    ),
}  # fmt: skip
_DATACENTER = ContextRow(
    first_tensor_bytes=612 * MIB, kernels_bytes=146 * MIB, low_bytes=430 * MIB, high_bytes=900 * MIB, measured=False,
    why="assumed like the H200's 758 MiB; published figures for data-centre cards run from 430 to 900 MiB",
)  # fmt: skip
_OTHER = ContextRow(
    first_tensor_bytes=426 * MIB, kernels_bytes=146 * MIB, low_bytes=256 * MIB, high_bytes=800 * MIB, measured=False,
    why="assumed: 426 MiB published for an RTX 6000 Ada with CUDA 13, and 146 MiB of kernels as on the H200",
)  # fmt: skip


def context_row(gpu_name: str | None, form: str | None) -> ContextRow:
    """The row for a card by its catalogue name, else by its form (datacenter or not)."""
    if gpu_name in _MEASURED:
        return _MEASURED[gpu_name]
    return _DATACENTER if form == "datacenter" else _OTHER


def cublas_workspace_bytes(compute_capability: str | None) -> int:
    """What one cuBLAS handle takes through torch's allocator (aten/src/ATen/cuda/CublasHandlePool.cpp).

    32 MiB on compute capability 9.0 and later, 8.125 MiB (4096 KiB twice and 16 KiB eight times) before; an unknown
    card is taken as the larger.
    """
    if compute_capability is not None and float(compute_capability) < 9.0:
        return (2 * 4096 + 8 * 16) << 10
    return 32 * MIB
