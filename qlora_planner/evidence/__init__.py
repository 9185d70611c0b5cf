"""Evidence: what was measured on real hardware, as records."""

from qlora_planner.evidence.readings import MEASURED_PHASES, CardReading, HostReading, NvmlReading, PhaseReading
from qlora_planner.evidence.records import RANDOM_WEIGHTS, SCHEMA, UNATTRIBUTED, Measurement

__all__ = [
    "MEASURED_PHASES",
    "RANDOM_WEIGHTS",
    "SCHEMA",
    "UNATTRIBUTED",
    "CardReading",
    "HostReading",
    "Measurement",
    "NvmlReading",
    "PhaseReading",
]
