"""Argument checks of CUDA kernels, which fake tensors do not make."""

from __future__ import annotations


class CudaRefusalError(ValueError):
    """What a CUDA kernel's own argument check says, raised by the stand-in for that kernel."""
