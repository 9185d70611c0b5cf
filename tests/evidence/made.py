"""Measurements made by hand."""

from __future__ import annotations

from typing import Any

from qlora_planner.evidence import CardReading, HostReading, Measurement, NvmlReading, PhaseReading
from qlora_planner.spec.run import RunConfig
from qlora_planner.units import GIB, MIB

RUN = RunConfig(quant="nf4", compute_dtype="bfloat16", alpha=32, target_modules="all-linear", trainer="trl-sft",
                lora_dropout=0.05, attention="sdpa", upcast=False, padding=False)  # fmt: skip
CONTEXT, WHOLE_CONTEXT = 500 * MIB, 650 * MIB


def measured(
    reserved: int = 10 * GIB, allocated: int = 9 * GIB, context: int = WHOLE_CONTEXT, **changes: Any
) -> Measurement:
    """A run on an RTX 4090 that held `reserved` bytes of torch and `context` beside them."""
    fields: dict[str, Any] = {
        "created": "2026-11-24T01:02:03Z", "model": "org/model-7b", "config_sha256": "ab" * 32, "run": RUN,
        "outcome": "ok", "config": {"model_type": "llama"}, "params": 7 * 10**9, "trainable_params": 10**7,
        "stack": {"torch": "2.11.0", "driver": "580.1"},
        "gpu": CardReading(name="NVIDIA GeForce RTX 4090", capacity_bytes=24564 * MIB, compute_capability="8.9"),
        "phases": {
            "load": PhaseReading(allocated_bytes=5 * GIB, reserved_bytes=5 * GIB, live_bytes=4 * GIB),
            "adapters": PhaseReading(allocated_bytes=5 * GIB, reserved_bytes=5 * GIB, live_bytes=5 * GIB),
            "training": PhaseReading(allocated_bytes=allocated, reserved_bytes=reserved, live_bytes=5 * GIB),
        },
        "nvml": NvmlReading(
            context_bytes=CONTEXT, process_peak_bytes=reserved + context, process_end_bytes=reserved + context,
            device_peak_bytes=reserved + context + 300 * MIB, others_bytes=0, source="nvml",
        ),
        "host": HostReading(rss_peak_bytes=3 * GIB, paged_bytes=0),
        "step_s": (2.0, 1.0, 1.0), "tokens_per_s": 2048.0,
    }  # fmt: skip
    return Measurement(**{**fields, **changes})
