"""What each field of a measurement's JSON must be."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from qlora_planner.spec.fields import Check

OUTCOMES = ("ok", "out-of-memory", "error", "interrupted")
ROLES = ("calibration", "holdout")
DEVICES = ("cuda", "cpu")
NVML_SOURCES = ("nvml", "device-difference")
# No machine holds more; a larger figure is a damaged file.
_MOST_BYTES = 1 << 50
_MOST_SECONDS = 1e9
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(T[0-9:.+Z-]+)?")


def _is_bytes(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST_BYTES


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= _MOST_SECONDS


def _optional(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or accepts(value)


def _one_of(names: tuple[str, ...]) -> Callable[[Any], bool]:
    return lambda value: type(value) is str and value in names


def _is_object(value: Any) -> bool:
    return type(value) is dict


def _is_versions(value: Any) -> bool:
    return type(value) is dict and all(type(version) is str for version in value.values())


def _is_sizes(value: Any) -> bool:
    return type(value) is dict and all(_is_bytes(size) for size in value.values())


def _is_texts(value: Any) -> bool:
    return type(value) is list and all(type(text) is str for text in value)


_TEXT: Check = (lambda value: type(value) is str and value != "", "must be a text")
_TEXT_OR_NONE: Check = (_optional(_TEXT[0]), "must be a text or null")
_BYTES: Check = (_optional(_is_bytes), "must be a whole number of bytes or null")
_COUNT: Check = (_optional(_is_bytes), "must be a whole number or null")
_FLAG: Check = (lambda value: type(value) is bool, "must be true or false")
_OBJECT: Check = (_is_object, "must be an object")
_OBJECT_OR_NONE: Check = (_optional(_is_object), "must be an object or null")

MEASUREMENT: dict[str, Check] = {
    "schema": _TEXT,
    "created": (lambda value: type(value) is str and bool(_DATE.fullmatch(value)), "must be an ISO date"),
    "model": _TEXT,
    "config_sha256": _TEXT_OR_NONE,
    "config": _OBJECT_OR_NONE,
    "toy": _FLAG,
    "tied_stored": (lambda value: value is None or type(value) is bool, "must be true, false or null"),
    "device": (_one_of(DEVICES), f"must be one of {', '.join(DEVICES)}"),
    "params": _COUNT,
    "trainable_params": _COUNT,
    "run": _OBJECT,
    "stack": (_is_versions, "must map packages to versions"),
    "gpu": _OBJECT_OR_NONE,
    "cap_bytes": _BYTES,
    "outcome": (_one_of(OUTCOMES), f"must be one of {', '.join(OUTCOMES)}"),
    "failed_phase": _TEXT_OR_NONE,
    "error": _TEXT_OR_NONE,
    "requested_bytes": _BYTES,
    "phases": _OBJECT,
    "nvml": _OBJECT,
    "host": _OBJECT,
    "components": (_optional(_is_sizes), "must map components to bytes, or be null"),
    "step_s": (lambda value: type(value) is list and all(map(_is_seconds, value)), "must be a list of seconds"),
    "tokens_per_s": (_optional(_is_seconds), "must be a number from 0, or null"),
    "predicted": _OBJECT_OR_NONE,
    "role": (_optional(_one_of(ROLES)), f"must be one of {', '.join(ROLES)}, or null"),
    "notes": (_is_texts, "must be a list of texts"),
}
MEASUREMENT_NEEDS = frozenset({"schema", "created", "model", "config_sha256", "run", "outcome"})

PHASE: dict[str, Check] = {"allocated_bytes": _BYTES, "reserved_bytes": _BYTES, "live_bytes": _BYTES}
PARTS: Mapping[str, dict[str, Check]] = {
    "gpu": {"name": _TEXT, "capacity_bytes": _BYTES, "compute_capability": _TEXT_OR_NONE},
    "nvml": {
        "context_bytes": _BYTES,
        "process_peak_bytes": _BYTES,
        "process_end_bytes": _BYTES,
        "device_peak_bytes": _BYTES,
        "others_bytes": _BYTES,
        "source": (_optional(_one_of(NVML_SOURCES)), f"must be one of {', '.join(NVML_SOURCES)}, or null"),
    },
    "host": {"rss_peak_bytes": _BYTES, "paged_bytes": _BYTES},
}
PARTS_NEEDS: Mapping[str, frozenset[str]] = {
    "gpu": frozenset({"name"}),
    "nvml": frozenset(),
    "host": frozenset(),
}
