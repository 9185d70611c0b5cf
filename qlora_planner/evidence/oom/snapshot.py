"""Memory snapshots of torch (`torch.cuda.memory._dump_snapshot`) as records of a failure; nothing in them is run."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from typing import Any, NoReturn

from qlora_planner.errors import InputError
from qlora_planner.evidence.oom.moments import moment_of
from qlora_planner.evidence.oom.records import Frame, OomReport


class _Plain(pickle.Unpickler):
    """An unpickler of builtin data alone: what would import or call anything is refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it wants {module}.{name}, and a snapshot is plain data")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to data outside")


def looks_like_snapshot(content: bytes) -> bool:
    """Whether a file is a pickle, or JSON that starts as a snapshot does."""
    return content[:1] == b"\x80" or (content.lstrip()[:1] == b"{" and b'"segments"' in content)


def read_snapshot(content: bytes, where: str) -> OomReport:
    """What torch held when the snapshot was made, and the failure if its history has one.

    Raises InputError naming `where` for what is no snapshot, or a pickle that holds more than plain data.
    """
    try:
        raw = json.loads(content) if content[:1] != b"\x80" else _Plain(io.BytesIO(content)).load()
    except (pickle.UnpicklingError, ValueError, EOFError, IndexError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{where}: is no memory snapshot that can be read: {error}") from None
    segments = raw.get("segments") if isinstance(raw, Mapping) else None
    if not isinstance(segments, list) or not all(isinstance(one, Mapping) for one in segments):
        raise InputError(f"{where}: holds no segments, so it is no snapshot of torch.cuda.memory")
    oom = _failure(raw.get("device_traces"))
    device = None if oom is None else oom.get("device")
    kept = [one for one in segments if device is None or one.get("device", device) == device]
    reserved, allocated = (sum(_whole(one.get(key)) for one in kept) for key in ("total_size", "allocated_size"))
    frames = _frames(oom.get("frames")) if oom is not None else ()
    return OomReport(
        kind="torch",
        source="snapshot",
        message="torch's allocator ran out of memory" if oom is not None else "no failure in the snapshot's history",
        backend="CUDA",
        device=device if isinstance(device, int) else None,
        requested_bytes=None if oom is None else _whole(oom.get("size")) or None,
        free_bytes=None if oom is None or oom.get("device_free") is None else _whole(oom.get("device_free")),
        allocated_bytes=allocated,
        idle_bytes=max(0, reserved - allocated),
        times=0 if oom is None else 1,
        **moment_of(frames),
    )


def _failure(traces: Any) -> Mapping[str, Any] | None:
    """The last event `oom` of any device, with its device."""
    found: Mapping[str, Any] | None = None
    for device, events in enumerate(traces if isinstance(traces, list) else []):
        for event in events if isinstance(events, list) else []:
            if isinstance(event, Mapping) and event.get("action") == "oom":
                found = {**event, "device": event.get("device", device)}
    return found


def _frames(raw: Any) -> tuple[Frame, ...]:
    """Python's frames, the outermost first: a snapshot has them the other way round."""
    found = [
        Frame(file=str(one.get("filename")), line=_whole(one.get("line")), function=str(one.get("name")))
        for one in (raw if isinstance(raw, list) else [])
        if isinstance(one, Mapping) and str(one.get("filename", "")).endswith(".py")
    ]
    return tuple(reversed(found))


def _whole(value: Any) -> int:
    return value if type(value) is int else 0
