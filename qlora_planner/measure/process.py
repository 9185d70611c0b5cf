"""Facts of the measuring process itself: its libraries, its tie to its parent, its highest host memory."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from qlora_planner.installing import installed_versions

PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "bitsandbytes", "trl", "datasets", "liger-kernel", "triton",
    "flash-attn", "tokenizers",
)  # fmt: skip
_PR_SET_PDEATHSIG = 1
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def versions() -> dict[str, str]:
    """Versions of Python and of every package that can move a figure; one that is not installed is left out."""
    return {"python": platform.python_version(), **installed_versions(PACKAGES)}


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel end this process when its parent ends (Linux; elsewhere the parent's own handling must do).

    `parent` is the process that should be it: one that has ended before this was asked for ends this process too.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:
            os._exit(1)


def stop_without_parent(parent: int, every_s: float = 1.0, grace_s: float = 120.0) -> None:
    """Have a thread ask this process to stop (SIGTERM) when `parent` is its parent no longer, and end it where that
    does not within `grace_s`: for systems without what `die_with_parent` asks for."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every_s)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def rss_peak_bytes() -> int | None:
    """The highest resident size of this process so far; None on Windows."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would count what the parent had resident when it started this process.
        match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii", errors="replace"))
        return None if match is None else int(match[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def requested_bytes(message: str) -> int | None:
    """The size of a failed request as torch words it: `Tried to allocate 2.00 GiB`."""
    match = re.search(r"[Tt]ried to allocate ([\d.]+) (B|bytes|KiB|MiB|GiB)", message)
    return None if match is None else int(float(match[1]) * _UNITS.get(match[2], 1))


def one_line(error: BaseException, most: int = 400) -> str:
    """An exception as one line: its kind, unless the message says enough, and its message."""
    text = " ".join(str(error).split())
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is torch's own error, or that of a library that asked CUDA itself (cuBLAS, managed memory)."""
    import torch

    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(
        sign in text for sign in ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    )


def synchronizer(device: str) -> Callable[[], None]:
    """What waits for the device's work to be done."""
    if device != "cuda":
        return lambda: None
    import torch

    return torch.cuda.synchronize  # type: ignore[no-any-return]
