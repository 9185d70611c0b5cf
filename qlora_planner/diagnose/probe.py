"""Run as a program of its own: asks torch and bitsandbytes how they were built, one JSON line each.

In another process because the imports cost seconds and gigabytes, and a broken CUDA install can end the interpreter.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def torch_facts() -> dict[str, Any]:
    """Build and card facts of torch, with what CUDA's start warned of."""
    import torch

    cuda: Any = torch.cuda  # older releases lack some of the arguments below
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = bool(cuda.is_available())
        bf16 = arch_list = None
        error = None
        if available:
            try:
                cuda.init()
                arch_list = list(cuda.get_arch_list())
                bf16 = bool(cuda.is_bf16_supported(including_emulation=False))
            except TypeError:
                bf16 = bool(cuda.is_bf16_supported())
            except (RuntimeError, AssertionError) as fault:
                available, error = False, _last_line(str(fault))
        if error is None and not available and caught:
            error = " ".join(str(caught[-1].message).split())
    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "available": available,
        "bf16": bf16,
        "arch_list": arch_list or [],
        "error": error,
    }


def bitsandbytes_facts() -> dict[str, Any]:
    """The native library that bitsandbytes chose, or the first line of why none loaded."""
    from bitsandbytes import cextension

    library: Any = cextension.lib
    handle = getattr(library, "_lib", None)
    path = getattr(handle, "_name", None)
    # The stand-in that bitsandbytes puts in place of a library answers every attribute with a function.
    if isinstance(path, str):
        return {"library": path.replace("\\", "/").rsplit("/", 1)[-1], "error": None}
    reason = getattr(library, "error_msg", None)
    return {"library": None, "error": " ".join(reason.split()) if isinstance(reason, str) else "no native library"}


def main() -> None:
    """Print one JSON line per answer, each as soon as it is known."""
    for name, ask in (("torch", torch_facts), ("bitsandbytes", bitsandbytes_facts)):
        try:
            answer: dict[str, Any] = {name: ask()}
        except Exception as fault:  # whatever a broken install raises on import is the answer
            answer = {f"{name}_error": f"{type(fault).__name__}: {' '.join(str(fault).split())}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
