"""The facts of a CUDA device and its libraries on which allocations depend."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaTraits:
    """The facts of a device and its libraries that decide which kernels run."""

    capability: tuple[int, int] = (9, 0)
    multiprocessors: int = 132
    cudnn: int = 91900  # torch 2.11+cu130's; cuDNN attention is preferred above 91500
    memory_bytes: int = 139 << 30

    @property
    def cublas_workspace(self) -> int:
        """Bytes per thread's cuBLAS handle: CublasHandlePool.cpp, parseChosenWorkspaceSize."""
        if self.capability[0] in (9, 10, 12):
            return 32 * MIB
        return (4096 * 2 + 16 * 8) * 1024

    @property
    def cublaslt_workspace(self) -> int:
        """Bytes of the buffer for fused bias kernels: `_parseCUDABlasLtWorkspaceSize`, 1 MiB by default."""
        return MIB

    @property
    def bfloat16(self) -> bool:
        """Whether the tensor cores have bf16."""
        return self.capability >= (8, 0)
