"""Reading one card's TOML file: every fault of it is found and named at once. The format is in `catalogue`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from qlora_planner.bounded import read_bytes
from qlora_planner.catalog.gpus.card_index import parsed
from qlora_planner.errors import InputError, one_line
from qlora_planner.spec.machine import Fact, GpuSpec
from qlora_planner.text import quoted, short
from qlora_planner.units import MIB

MAX_FILE_BYTES = 1 << 16  # a card takes 2 KiB; what is larger is no card and is not parsed
FORMS = ("desktop", "laptop", "workstation", "datacenter")
VENDORS = ("nvidia", "amd")

_MOST_FAULTS, _LONGEST_FAULT = 40, 200

_SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_CAPABILITY = re.compile(r"[1-9]\d?\.\d")
_MAX_MIB = 1 << 22  # 4 TiB
_MAX_MIB_SHORT_OF_SOLD = 0.93  # what ECC and the driver take from the figure on the box is less than a fourteenth

# File key -> field of GpuSpec. Each of these needs a source.
_FIELD_OF_FACT = {
    "marketed_gb": "marketed_gb",
    "memory_mib": "memory_bytes",
    "cuda_total_mib": "cuda_total_bytes",
    "bandwidth_gb_per_s": "bandwidth_bytes_per_s",
    "link": "link",
    "link_gb_per_s": "link_bytes_per_s",
    "node_network_gb_per_s": "node_network_bytes_per_s",
    "bf16_tflops": "bf16_flops",
    "fp16_tflops": "fp16_flops",
    "fp32_tflops": "fp32_flops",
    "compute_capability": "compute_capability",
    "bf16": "bf16",
    "rent_usd_per_hour": "rent_usd_per_hour",
}
_REQUIRED = ("label", "vendor", "form", "memory_mib")


def load_card(path: Path, row: tuple[str, Mapping[str, Any]] | None = None) -> GpuSpec:
    """The card of the file at `path`; `row` is the file's in an index, which saves parsing it.

    Raises InputError with all its faults, or because it cannot be read.
    """
    try:
        content = read_bytes(path, MAX_FILE_BYTES, "card's file")
        document = parsed(content, row) or _toml(content)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a UTF-8 text file") from None
    except (ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a TOML file: {problem}") from None
    return read_card(path.stem, document, str(path))


def _toml(content: bytes) -> Mapping[str, Any]:
    import tomllib  # late: most cards are read from their index

    return tomllib.loads(content.decode("utf-8").replace("\r\n", "\n"))


def read_card(name: str, document: Mapping[str, Any], location: str) -> GpuSpec:
    """The card of a parsed file called `name`. Raises InputError that starts with `location` and lists all faults."""
    faults: list[str] = []
    if not _SLUG.fullmatch(name):
        faults.append("the file's name must be lower-case letters, digits and single hyphens")
    values: dict[str, Any] = {}
    for key, value in document.items():
        if key == "sources":
            continue
        check = _CHECKS.get(key)
        if check is None:
            faults.append(f"unknown key {quoted(key)}")
        elif problem := check(value):
            faults.append(f"{key} {problem}")
        else:
            values[key] = value
    faults += [f"{key} is missing" for key in _REQUIRED if key not in document]
    sources = _facts(document, faults)
    memory, cuda, sold = (values.get(key) for key in ("memory_mib", "cuda_total_mib", "marketed_gb"))
    if memory and cuda and cuda > memory:
        faults.append(f"cuda_total_mib {cuda} is more than memory_mib {memory}")
    if memory and sold and not _MAX_MIB_SHORT_OF_SOLD <= memory / (sold * 1024) <= 1.02:
        faults.append(f"memory_mib {memory} is not what a card sold with {sold} GB has")
    if "link_gb_per_s" in values and "link" not in document:
        faults.append('link_gb_per_s is of no link: name it, as link = "NVLink 4"')
    if faults:
        raise InputError(one_line([short(fault, _LONGEST_FAULT) for fault in faults[:_MOST_FAULTS]], location))
    return GpuSpec(
        name=name,
        label=values["label"],
        memory_bytes=values["memory_mib"] * MIB,
        cuda_total_bytes=_scaled(cuda, MIB),
        aliases=tuple(values.get("aliases", ())),
        vendor=values["vendor"],
        form=values["form"],
        marketed_gb=sold,
        bandwidth_bytes_per_s=_scaled(values.get("bandwidth_gb_per_s"), 10**9),
        link=values.get("link"),
        link_bytes_per_s=_scaled(values.get("link_gb_per_s"), 10**9),
        node_network_bytes_per_s=_scaled(values.get("node_network_gb_per_s"), 10**9),
        bf16_flops=_scaled(values.get("bf16_tflops"), 10**12),
        fp16_flops=_scaled(values.get("fp16_tflops"), 10**12),
        fp32_flops=_scaled(values.get("fp32_tflops"), 10**12),
        compute_capability=values.get("compute_capability"),
        bf16=values.get("bf16"),
        rent_usd_per_hour=values.get("rent_usd_per_hour"),
        verified=values.get("verified", True),
        shared_with_host=values.get("shared_with_host", False),
        facts=sources,
        note=values.get("note"),
    )


def _facts(document: Mapping[str, Any], faults: list[str]) -> dict[str, Fact]:
    """GpuSpec field -> its source; what is wrong with the sources is added to `faults`."""
    by_field: dict[str, Fact] = {}
    sources = document.get("sources", [])
    if not isinstance(sources, list):
        faults.append("sources must be [[sources]] tables")
        return by_field
    for number, entry in enumerate(sources, 1):
        if not isinstance(entry, dict) or entry.keys() != {"fields", "source", "date"}:
            faults.append(f"source {number} must have fields, source and date, and nothing else")
            continue
        fields, source, day = entry["fields"], entry["source"], entry["date"]
        if problem := _names(fields):
            faults.append(f"source {number}: fields {problem}")
            continue
        if problem := _text(source) or _day(day):
            faults.append(f"source {number}: {problem}")
            continue
        for field in fields:
            if field not in _FIELD_OF_FACT or field not in document:
                faults.append(f"source {number} is for {quoted(field)}, which this file does not give")
            elif _FIELD_OF_FACT[field] in by_field:
                faults.append(f"{field} has two sources")
            else:
                by_field[_FIELD_OF_FACT[field]] = Fact(source=source, date=day)
    if unsourced := [key for key in _FIELD_OF_FACT if key in document and _FIELD_OF_FACT[key] not in by_field]:
        faults.append(f"no source for {', '.join(unsourced)}")
    return by_field


def _scaled(value: float | None, unit: int) -> int | None:
    return None if value is None else round(value * unit)


def _text(value: object) -> str | None:
    fine = isinstance(value, str) and value.strip() and value.isprintable() and len(value) <= 500
    return None if fine else "must be one line of text"


def _names(value: object) -> str | None:
    fine = isinstance(value, list) and value and all(_text(name) is None for name in value)
    return None if fine else "must be a list of names"


def _day(value: object) -> str | None:
    try:
        date.fromisoformat(value if isinstance(value, str) and len(value) == 10 else "")
    except ValueError:
        return 'date must be text such as "2026-11-23"'
    return None


def _truth(value: object) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _one_of(*choices: str) -> Callable[[object], str | None]:
    return lambda value: None if value in choices else f"must be one of {', '.join(choices)}"


def _whole(low: int, high: int) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        fine = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if fine else f"must be a whole number from {low} to {high}"

    return check


def _number(high: float) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        fine = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= high
        return None if fine else f"must be a number above 0 and up to {high:g}"

    return check


def _capability(value: object) -> str | None:
    return None if isinstance(value, str) and _CAPABILITY.fullmatch(value) else 'must be text such as "8.9"'


_CHECKS: dict[str, Callable[[object], str | None]] = {
    "label": _text,
    "aliases": _names,
    "vendor": _one_of(*VENDORS),
    "form": _one_of(*FORMS),
    "marketed_gb": _whole(1, 4096),
    "memory_mib": _whole(256, _MAX_MIB),
    "cuda_total_mib": _whole(256, _MAX_MIB),
    "bandwidth_gb_per_s": _number(100_000),
    "link": _text,
    "link_gb_per_s": _number(100_000),
    "node_network_gb_per_s": _number(100_000),
    "bf16_tflops": _number(1_000_000),
    "fp16_tflops": _number(1_000_000),
    "fp32_tflops": _number(1_000_000),
    "compute_capability": _capability,
    "bf16": _truth,
    "rent_usd_per_hour": _number(1000),
    "verified": _truth,
    "shared_with_host": _truth,
    "note": _text,
}
