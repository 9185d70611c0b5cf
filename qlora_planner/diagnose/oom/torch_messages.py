"""The words in which torch's own allocators say that memory ran out, from torch 1.0 to 2.13, on every backend."""

from __future__ import annotations

import re
from itertools import islice
from typing import Any

from qlora_planner.diagnose.oom.records import ROUNDING_BYTES
from qlora_planner.diagnose.oom.text import Failure, line_around, prefix_of, shown

_UNITS = {
    "b": 1, "byte": 1, "bytes": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "pib": 1 << 50,
    "eib": 1 << 60,
    # MPS wrote GB up to 2.7 and means GiB: it divides by 2**30.
    "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40, "pb": 1 << 50, "eb": 1 << 60,
}  # fmt: skip
SIZE = r"(\d{1,20}(?:\.\d{1,9})?) ?([KMGTPE]i?B|[KMGTPEkmgtpe]i?b|bytes?|B)"
# torch's own allocator, in each of the ways that it has worded it:
# since 2.1 (c10/cuda/CUDACachingAllocator.cpp): ". GPU 0 has a total capacity of X of which Y is free. ..." (2.1 itself
# writes "capacty"); 1.0 to 2.0: " (GPU 0; X total capacity; Y already allocated; Z free; ...)"; the backend
# cudaMallocAsync (CUDAMallocAsyncAllocator.cpp): a line each for what is allocated, requested, free.
_BEGINS = re.compile(
    r"\b(CUDA|HIP|XPU|MPS backend) out of memory\b|\b(?:Allocation on device\b[^\n]{0,40}would exceed allowed memory)"
)
_PARTS: dict[str, str] = {
    "requested_bytes": rf"[Tt]ried to allocate (?:more than )?{SIZE}|Requested *: {SIZE}",
    "capacity_bytes": rf"total capac(?:i)?ty of {SIZE}|{SIZE} total capacity|Device limit *: {SIZE}",
    "free_bytes": rf"of which {SIZE} is free|{SIZE} free\b|Free \(according to CUDA\): {SIZE}",
    "process_bytes": rf"this process has {SIZE} memory in use",
    "allocated_bytes": rf"Of the allocated memory {SIZE} is allocated|{SIZE} already allocated"
    rf"|MPS allocated: {SIZE}|Currently allocated *: {SIZE}",
    "metal_bytes": rf"other allocations: {SIZE}",
    "idle_bytes": rf"{SIZE} is reserved by PyTorch but unallocated|{SIZE} cached\b",
    "reserved_bytes": rf"{SIZE} reserved in total",
    "private_pools_bytes": rf"{SIZE} allocated in private pools",
    "allowed_bytes": rf"{SIZE} allowed;|max allowed: {SIZE}|user-supplied memory fraction\) *: {SIZE}",
}
_PATTERNS = {name: re.compile(pattern) for name, pattern in _PARTS.items()}
_PROCESS = re.compile(rf"Process (\d{{1,10}}) has {SIZE} memory in use")
_DEVICE = re.compile(r"\b(?:GPU|XPU|on device) (\d{1,4})\b")
_ENDS = re.compile(r"\s*(Traceback|File \"|\d+%|\[|[\w.]{0,80}Error\b|E\d{4}|[#$>])")
# How far a message reaches: torch's own is one line that terminals and loggers wrap.
_LONGEST = 1600
# Of a message that is repeated without end, so many are counted.
_MOST_TIMES = 10_000


def find_torch(text: str) -> Failure | None:
    """The first message of torch's allocator, with its figures; None where there is none."""
    # Of a text that says nothing else, so many are looked at: the first that counts is among them.
    matches = islice(_BEGINS.finditer(text), _MOST_TIMES)
    places = [match for match in matches if not _mentioned(text, match.start())]
    if not places:
        return None
    # A line of source code or of advice has the words without a figure.
    full = [match for match in places if _has_figures(text, match.start())]
    first = (full or places)[0]
    fields = _fields(text, first.start(), first[1] or "CUDA")
    return Failure(fields=fields, start=first.start(), times=len(full or places))


def size_of(number: str, unit: str) -> int:
    """Bytes of a size as messages print it."""
    return int(float(number) * _UNITS[unit.lower()])


def _mentioned(text: str, start: int) -> bool:
    """Whether the words are no failure but a mention: advice, or a string in a line of source code."""
    if _has_figures(text, start):
        return False
    line, low = line_around(text, start)
    before = line[: start - low]
    return before.endswith(('"', "'")) or bool(
        before.strip() and not re.search(r"(?i)error|exception|fail|\]: *$", before)
    )


def _has_figures(text: str, start: int) -> bool:
    part = text[start : start + 300].partition('"')[0]
    return "ried to allocate" in part or "Requested" in part


def _fields(text: str, start: int, backend: str) -> dict[str, Any]:
    line, low = line_around(text, start)
    message = _message(text[start : start + _LONGEST], prefix_of(line) if low < start else "")
    fields: dict[str, Any] = {}
    for name, pattern in _PATTERNS.items():
        match = pattern.search(message)
        if match is not None:
            number, unit = [part for part in match.groups() if part is not None]
            fields[name] = size_of(number, unit)
    reserved = fields.pop("reserved_bytes", None)
    if reserved is not None and "allocated_bytes" in fields:
        fields.setdefault("idle_bytes", max(0, reserved - fields["allocated_bytes"]))
    capacity = fields.get("capacity_bytes")
    processes = {int(pid): size_of(number, unit) for pid, number, unit in _PROCESS.findall(message)}
    if capacity is not None:
        # torch prints 17179869184.00 GiB where the driver tells it nothing, and where no limit is set.
        processes = {pid: size for pid, size in processes.items() if size <= capacity}
        for name in ("process_bytes", "allowed_bytes"):
            if fields.get(name, 0) > capacity:
                del fields[name]
    backend = backend.split()[0].upper()
    if backend == "MPS" and "allocated_bytes" in fields:
        fields["process_bytes"] = fields["allocated_bytes"] + fields.get("metal_bytes", 0)
    own = _own(processes, fields) if "process_bytes" not in fields else None
    if own is not None:
        fields |= {"own_pid": own, "process_bytes": processes.pop(own)}
    device = _DEVICE.search(message)
    return {
        "kind": "torch",
        "message": shown(message, _LONGEST),
        "backend": backend,
        "device": None if device is None else int(device[1]),
        "processes": processes or None,
        **fields,
    }


def _own(processes: dict[int, int], fields: dict[str, Any]) -> int | None:
    """The named process that is this one, where torch did not know its own id, as in containers.

    What torch reserved must be in one of them, unless what no process is named for has room for it; of those that are
    large enough it is the one nearest to it, the difference being CUDA's context.
    """
    if "allocated_bytes" not in fields:
        return None
    reserved = fields["allocated_bytes"] + fields.get("idle_bytes", 0)
    capacity, free = fields.get("capacity_bytes"), fields.get("free_bytes")
    if capacity is not None and free is not None:
        unnamed = capacity - free - sum(processes.values())
        if unnamed + ROUNDING_BYTES >= reserved:
            return None
    fitting = [(size, pid) for pid, size in processes.items() if size + ROUNDING_BYTES >= reserved]
    return min(fitting)[1] if fitting else None


def _message(text: str, prefix: str) -> str:
    """The message on one line, to its end: what follows it in a log may hold sizes of its own."""
    # A log of JSON has the line ends of a traceback as two characters.
    lines = text.replace("\\n", "\n").split("\n")
    kept = lines[:1]
    for line in lines[1:]:
        line = line.removeprefix(prefix)
        # Wrapped words go on; a new traceback, a prompt, an empty line or a further message does not.
        if not line.strip() or _ENDS.match(line):
            break
        kept.append(line.strip())
    joined = " ".join(" ".join(kept).split())
    end = re.search(r"If reserved (?:but unallocated )?memory is|Use PYTORCH_MPS_HIGH|documentation for Memory", joined)
    return (joined[: end.start()] if end else joined).strip()
