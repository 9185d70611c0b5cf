"""The words in which torch, CUDA, bitsandbytes and the host say that memory ran out, from torch 1.0 to 2.13."""

from __future__ import annotations

import re
from typing import Any

_UNITS = {
    "b": 1, "byte": 1, "bytes": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
    # MPS writes GB and means GiB: it divides by 2**30.
    "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30,
}  # fmt: skip
_SIZE = r"(\d+(?:\.\d+)?) ?([KMGT]i?B|bytes?|B)"
# torch's own allocator, in each of the ways that it has worded it:
# since 2.1 (c10/cuda/CUDACachingAllocator.cpp): ". GPU 0 has a total capacity of X of which Y is free. ..." (2.1 itself
# writes "capacty"); 1.0 to 2.0: " (GPU 0; X total capacity; Y already allocated; Z free; ...)".
_TORCH = re.compile(
    rf"\b(CUDA|HIP|XPU|MPS backend) out of memory\b[^\n]*?(?:Tried to allocate {_SIZE})?", re.IGNORECASE
)
_PARTS: dict[str, str] = {
    "requested_bytes": rf"[Tt]ried to allocate {_SIZE}",
    "capacity_bytes": rf"(?:total capac(?:i)?ty of {_SIZE}|{_SIZE} total capacity)",
    "free_bytes": rf"(?:of which {_SIZE} is free|{_SIZE} free)",
    "process_bytes": rf"this process has {_SIZE} memory in use",
    "allocated_bytes": rf"(?:Of the allocated memory {_SIZE} is allocated|{_SIZE} already allocated"
    rf"|MPS allocated: {_SIZE})",
    "idle_bytes": rf"(?:{_SIZE} is reserved by PyTorch but unallocated|{_SIZE} cached)",
    "reserved_bytes": rf"{_SIZE} reserved in total",
    "private_pools_bytes": rf"{_SIZE} allocated in private pools",
    "allowed_bytes": rf"(?:{_SIZE} allowed;|max allowed: {_SIZE})",
}
_PATTERNS = {name: re.compile(pattern) for name, pattern in _PARTS.items()}
_PROCESS = re.compile(rf"Process (\d+) has {_SIZE} memory in use")
_DEVICE = re.compile(r"\b(?:GPU|XPU) (\d+)[;\s]")
# Kind -> ways of saying it; the first in the text counts, and torch's own words before all others at one place.
_OTHERS: dict[str, tuple[str, ...]] = {
    "cublas": (
        r"CUBLAS_STATUS_ALLOC_FAILED",
        r"CUBLAS_STATUS_NOT_INITIALIZED",
        r"CUDNN_STATUS_ALLOC_FAILED",
        r"CUSOLVER_STATUS_ALLOC_FAILED",
        r"(?:HIPBLAS|ROCBLAS)_STATUS_(?:ALLOC_FAILED|MEMORY_ERROR)",
    ),
    "bitsandbytes": (r"Error out of memory at line \d+ in file [^\n]*", r"Error out of memory at line[^\n]*"),
    "cuda": (
        r"CUDA (?:driver )?error:? ?(?:: )?out of memory",
        r"HIP error: out of memory",
        r"CUDA_ERROR_OUT_OF_MEMORY",
        r"cudaErrorMemoryAllocation",
        r"Cuda failure \d* ?'out of memory'",
        r"(?:torch\.|torch\.cuda\.)?OutOfMemoryError\b",
    ),
    "host": (
        r"DefaultCPUAllocator:[^\n]*(?:can't allocate memory|not enough memory)[^\n]*",
        r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:is killed by signal: Killed|exited unexpectedly)[^\n]*",
        r"Out of memory: Killed process \d+[^\n]*",
        r"[^\n]*\boom-kill[^\n]*",
        r"(?m:^(?:[^\n]*: line \d+: +\d+ )?Killed\b[^\n]*$)",
        r"(?:exit(?:ed with)?(?: code| status)?|exitcode|returned non-zero exit status)[ :]+(?:-9|137)\b[^\n]*",
        r"Signal 9 \(SIGKILL\)[^\n]*",
        r"died with <Signals\.SIGKILL: 9>[^\n]*",
        r"(?m:^MemoryError\b[^\n]*)",
        r"Cannot allocate memory(?: \(\d+\))?",
        r"insufficient shared memory \(shm\)[^\n]*",
    ),
}
_ASKED_OF_HOST = re.compile(r"tried to allocate (\d+) bytes", re.IGNORECASE)
# How far a message reaches: torch's own is one line that terminals and loggers wrap.
_LONGEST = 1600


def find(text: str) -> tuple[dict[str, Any], int, int] | None:
    """Fields of an OomReport, where the message starts, and how many there are; None where there is none."""
    torch = list(_TORCH.finditer(text))
    others = [
        (match.start(), kind, match.group(0))
        for kind, patterns in _OTHERS.items()
        for pattern in patterns
        for match in re.finditer(pattern, text)
    ]
    if torch:
        return _torch(text, torch[0].start(), torch[0].group(1)), torch[0].start(), len(torch)
    if not others:
        return None
    # On a card the card's words count: a host that then kills what is left only cleans up.
    on_card = [one for one in others if one[1] != "host"]
    start, kind, message = min(on_card or others)
    found: dict[str, Any] = {"kind": kind, "message": " ".join(message.split()), "backend": _backend(kind, message)}
    asked = _ASKED_OF_HOST.search(message)
    if asked is not None:
        found["requested_bytes"] = int(asked[1])
    return found, start, len({one[0] for one in others if one[1] == kind})


def _backend(kind: str, message: str) -> str | None:
    if kind == "host":
        return None
    return "HIP" if re.search(r"HIP|ROCBLAS", message) else "CUDA"


def _torch(text: str, start: int, backend: str) -> dict[str, Any]:
    message = _message(text[start : start + _LONGEST])
    found: dict[str, Any] = {}
    for name, pattern in _PATTERNS.items():
        match = pattern.search(message)
        if match is not None:
            number, unit = [part for part in match.groups() if part is not None]
            found[name] = int(float(number) * _UNITS[unit.lower()])
    reserved = found.pop("reserved_bytes", None)
    if reserved is not None and "allocated_bytes" in found:
        found.setdefault("idle_bytes", max(0, reserved - found["allocated_bytes"]))
    capacity = found.get("capacity_bytes")
    if capacity is not None and found.get("process_bytes", 0) > capacity:
        del found["process_bytes"]  # torch prints 17179869184.00 GiB where the driver tells it nothing
    processes = {int(pid): int(float(size) * _UNITS[unit.lower()]) for pid, size, unit in _PROCESS.findall(message)}
    device = _DEVICE.search(message)
    return {
        "kind": "torch",
        "message": message,
        "backend": backend.split()[0].upper(),
        "device": None if device is None else int(device[1]),
        "processes": processes or None,
        **found,
    }


def _message(text: str) -> str:
    """The message on one line, to its end: what follows it in a log may hold sizes of its own."""
    lines = text.split("\n")
    kept = lines[:1]
    for line in lines[1:]:
        # Wrapped words go on; a new traceback, a prompt, an empty line or a further message does not.
        if not line.strip() or re.match(r"\s*(Traceback|File \"|\d+%|\[|[\w.]*Error\b|E\d{4}|[#$>])", line):
            break
        kept.append(line.strip())
        if "documentation for Memory Management" in " ".join(kept):
            break
    joined = " ".join(" ".join(kept).split())
    end = re.search(r"If reserved (?:but unallocated )?memory is", joined)
    return (joined[: end.start()] if end else joined).strip()
