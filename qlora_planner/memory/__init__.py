"""The memory model: integer arithmetic over a profile and a run. Imports no torch."""

from qlora_planner.memory.records import (
    PHASES,
    Basis,
    Component,
    ComponentLine,
    Fit,
    HostBytes,
    MemoryEstimate,
    Peak,
    Phase,
    Problem,
    Speed,
    StaticBytes,
    Unmodelled,
)

__all__ = [
    "PHASES",
    "Basis",
    "Component",
    "ComponentLine",
    "Fit",
    "HostBytes",
    "MemoryEstimate",
    "Peak",
    "Phase",
    "Problem",
    "Speed",
    "StaticBytes",
    "Unmodelled",
]
