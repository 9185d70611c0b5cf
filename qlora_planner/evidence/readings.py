"""What one verification read, by where it was read: torch's allocator, NVML, the host."""

from __future__ import annotations

from qlora_planner.record import record

# `training` spans the adapters' casting and every step; forward, backward and optimizer are parts of it.
MEASURED_PHASES = (
    "load", "prepare", "adapters", "wrap", "training", "generate", "forward", "backward", "optimizer", "eval", "save",
)  # fmt: skip


@record
class PhaseReading:
    """One phase as torch's allocator counts it, in bytes; None where the device has no such counter.

    `allocated_bytes` and `reserved_bytes` are peaks over the phase, `live_bytes` what is allocated at its end.
    """

    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    live_bytes: int | None = None


@record
class NvmlReading:
    """The card and this process as NVML counts them, in bytes; None where the driver gives no reading.

    `context_bytes` is the process after its first CUDA tensor, `process_end_bytes` after the last step,
    `others_bytes` the most that other processes held during the run. `source` says how the process figures were had:
    `nvml` (the driver's own figure per process), `device-difference` (the card's use less what was in use before,
    for drivers that give none per process), None where neither was possible.
    """

    context_bytes: int | None = None
    process_peak_bytes: int | None = None
    process_end_bytes: int | None = None
    device_peak_bytes: int | None = None
    others_bytes: int | None = None
    source: str | None = None


@record
class HostReading:
    """Host memory of the measuring process in bytes: its highest resident size, and managed memory of the optimizer."""

    rss_peak_bytes: int | None = None
    paged_bytes: int | None = None


@record
class CardReading:
    """The card of a measurement: NVML's name for it, its total by NVML, and its compute capability (`9.0`)."""

    name: str
    capacity_bytes: int | None = None
    compute_capability: str | None = None
