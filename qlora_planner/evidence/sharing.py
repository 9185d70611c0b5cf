"""Evidence that somebody shares: one verified run without anything that says who ran it or where."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import date
from typing import Any

from qlora_planner.evidence.calibration import card_slug, usable
from qlora_planner.evidence.records import RANDOM_WEIGHTS, Measurement
from qlora_planner.record import replaced

# What may stand in a shared row's notes: what these programs write themselves, without a name or a path.
NOTES = (RANDOM_WEIGHTS, "timing: exclusive")
# Of a config: where a file lay, and where its code would come from.
_PERSONAL_KEYS = frozenset({"_name_or_path", "name_or_path", "auto_map", "_commit_hash"})
_PERSONAL = re.compile(r"(?:^|[\s\"'=:(])(?:~?/[^\s/]|[A-Za-z]:\\|\\\\)|[\w.+-]+@[\w-]+\.\w", re.ASCII)
_FOLDER = re.compile(r"^[~./\\]|^[A-Za-z]:\\|[^/]*/[^/]*/|\\")
_LONGEST = 64 << 10  # characters of a row
_DIGITS = 12


def shareable(measurement: Measurement, *, shipped: bool) -> Measurement:
    """`measurement` without what is personal: the prediction, notes that are not ours, folders in names and configs.

    `shipped` says that the catalogue has the very config, which is then left out. A model that was named by its folder
    is named by its kind.
    """
    config = None if shipped else _without_personal(dict(measurement.config or {})) or None
    name = measurement.model
    if _FOLDER.search(name):
        name = f"unnamed/{(measurement.config or {}).get('model_type') or 'model'}"
    return replaced(
        measurement, model=name, config=config, predicted=None, error=None, role=None,
        notes=tuple(note for note in measurement.notes if note in NOTES),
    )  # fmt: skip


def _without_personal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_personal(part) for key, part in value.items() if key not in _PERSONAL_KEYS}
    return [_without_personal(part) for part in value] if isinstance(value, list) else value


def row_text(measurement: Measurement) -> str:
    """The one line of its file, with its end."""
    return json.dumps(measurement.to_dict(), separators=(",", ":"), allow_nan=False) + "\n"


def row_path(measurement: Measurement) -> str:
    """`rtx-4090/0f3a….jsonl` under the folder of shared rows: a file each, so that pull requests do not meet."""
    card = card_slug(measurement.gpu.name) if measurement.gpu else "cpu"
    return f"{card}/{hashlib.sha256(row_text(measurement).encode()).hexdigest()[:_DIGITS]}.jsonl"


def sharing_faults(measurement: Measurement) -> list[str]:
    """Why a row cannot be taken, each a sentence without a stop; empty where it can."""
    faults = []
    if not usable(measurement):
        faults.append("the run must have ended well, on a card, whole and without a limit on torch")
    if measurement.gpu is None or measurement.gpu.capacity_bytes is None:
        faults.append("the card and its memory must be named")
    if measurement.config is None and measurement.config_sha256 is None:
        faults.append("neither a config nor its digest says which model it was")
    faults += [f"{path} looks personal: {text[:60]!r}" for path, text in _texts(measurement.to_dict(), "")
               if _PERSONAL.search(text)]  # fmt: skip
    faults += [f"{name} must be left out" for name in ("predicted", "role", "error") if getattr(measurement, name)]
    if any(note not in NOTES for note in measurement.notes):
        faults.append("notes may hold the program's own alone")
    try:
        date.fromisoformat(measurement.created[:10])
    except ValueError:
        faults.append("created must be a date")
    if len(row_text(measurement)) > _LONGEST:
        faults.append(f"the row is longer than {_LONGEST:,} characters")
    return faults + list(_impossible(measurement))


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _texts(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, path)


def _impossible(measurement: Measurement) -> Iterator[str]:
    """Readings that contradict each other or the card."""
    capacity = None if measurement.gpu is None else measurement.gpu.capacity_bytes
    reserved = [phase.reserved_bytes or 0 for phase in measurement.phases.values()]
    for name, phase in measurement.phases.items():
        sizes = [size for size in (phase.live_bytes, phase.allocated_bytes, phase.reserved_bytes) if size is not None]
        if sizes != sorted(sizes):
            yield f"phases.{name}: what lives is at most what is allocated, and that what is reserved"
    training = measurement.phases.get("training")
    if training is None or not training.allocated_bytes or not training.reserved_bytes:
        yield "phases.training must have what torch allocated and reserved"
    peak = measurement.nvml.process_peak_bytes
    if peak is not None and peak < max(reserved, default=0):
        yield "nvml.process_peak_bytes is below what torch reserved"
    if capacity is not None and max([peak or 0, *reserved]) > capacity:
        yield "more was held than the card has"
    if any(seconds <= 0 for seconds in measurement.step_s):
        yield "step_s must be above nought"
