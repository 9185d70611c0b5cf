"""Memory snapshots of torch (`torch.cuda.memory._dump_snapshot`) as records of a failure; nothing in them is run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from qlora_planner.bounded import check_json
from qlora_planner.diagnose.oom.moments import moment_of
from qlora_planner.diagnose.oom.plain_pickle import load_plain
from qlora_planner.diagnose.oom.records import Frame, OomReport
from qlora_planner.diagnose.oom.text import shown
from qlora_planner.errors import InputError

# A history of 200,000 events is 40 MB; torch keeps as many as it is asked to.
SNAPSHOT_BYTES = 48 << 20
_MOST_JSON_VALUES = 1_000_000
# What is looked at, whatever a file says of itself: lists in a pickle can be the same list a million times.
_MOST_SEGMENTS = 1_000_000
_MOST_EVENTS = 4_000_000
_MOST_DEVICES = 256
_MOST_FRAMES = 2_000
_LARGEST_BYTES = 1 << 50
_SNIFFED = 1 << 16


def looks_like_snapshot(head: bytes) -> bool:
    """Whether a file that begins so is a pickle, or JSON as a snapshot of torch is."""
    return head[:1] == b"\x80" or (head[:64].lstrip()[:1] == b"{" and b'"segments"' in head[:_SNIFFED])


def read_snapshot(content: bytes, location: str) -> OomReport:
    """What torch held when the snapshot was made, and the failure if its history has one.

    Raises InputError naming `location` for what is no snapshot, a pickle that holds more than plain data, and for one
    that is larger, deeper or longer than the bounds here and in plain_pickle.py.
    """
    if len(content) > SNAPSHOT_BYTES:
        raise InputError(
            f"{location}: a snapshot of more than {SNAPSHOT_BYTES >> 20} MiB is not read; record fewer events"
            " (torch.cuda.memory._record_memory_history(max_entries=100000)), or give the log"
        )
    if content[:1] != b"\x80":
        check_json(content, location, most_values=_MOST_JSON_VALUES)
    try:
        raw = load_plain(content) if content[:1] == b"\x80" else json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else shown(str(error), 200)
        raise InputError(f"{location}: is no memory snapshot that can be read: {reason}") from None
    segments = raw.get("segments") if isinstance(raw, Mapping) else None
    if not isinstance(segments, list) or not all(isinstance(segment, Mapping) for segment in segments[:_MOST_SEGMENTS]):
        raise InputError(f"{location}: holds no segments, so it is no snapshot of torch.cuda.memory")
    if len(segments) > _MOST_SEGMENTS:
        raise InputError(f"{location}: holds more than {_MOST_SEGMENTS:,} segments, so it is no snapshot of torch")
    oom = _failure(raw.get("device_traces"))
    device = None if oom is None else oom.get("device")
    kept = [segment for segment in segments if device is None or segment.get("device", device) == device]
    reserved, allocated = (sum(_size(segment.get(key)) for segment in kept) for key in ("total_size", "allocated_size"))
    frames = tuple(_frames(oom.get("frames"))) if oom is not None else ()
    return OomReport(
        kind="torch",
        source="snapshot",
        message="torch's allocator ran out of memory" if oom is not None else "no failure in the snapshot's history",
        backend="CUDA",
        device=device if type(device) is int and 0 <= device < _MOST_DEVICES else None,
        requested_bytes=None if oom is None else _size(oom.get("size")) or None,
        free_bytes=None if oom is None or oom.get("device_free") is None else _size(oom.get("device_free")),
        allocated_bytes=allocated,
        idle_bytes=max(0, reserved - allocated),
        times=0 if oom is None else 1,
        **moment_of(frames),
    )


def _failure(traces: Any) -> Mapping[str, Any] | None:
    """The last event `oom` of any device, with its device."""
    left, seen = _MOST_EVENTS, set()
    failure: Mapping[str, Any] | None = None
    for device, events in enumerate(traces[:_MOST_DEVICES] if isinstance(traces, list) else []):
        if not isinstance(events, list) or id(events) in seen:
            continue
        seen.add(id(events))
        for event in reversed(events[-left:] if left else []):
            left -= 1
            if isinstance(event, Mapping) and event.get("action") == "oom":
                failure = {**event, "device": event.get("device", device)}
                break
    return failure


def _frames(raw: Any) -> Iterator[Frame]:
    """Python's frames, the outermost first: a snapshot has them the other way round."""
    for entry in reversed(raw[:_MOST_FRAMES] if isinstance(raw, list) else []):
        file = entry.get("filename") if isinstance(entry, Mapping) else None
        if isinstance(file, str) and file.endswith(".py"):
            name = entry.get("name")
            function = shown(name, 200) if isinstance(name, str) else "<module>"
            yield Frame(file=shown(file, 1000), line=_size(entry.get("line")), function=function)


def _size(value: Any) -> int:
    """A size as a snapshot tells it; what is none is 0."""
    return value if type(value) is int and 0 <= value <= _LARGEST_BYTES else 0
