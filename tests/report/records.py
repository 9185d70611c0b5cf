"""Estimates and survey rows made by hand, for screens."""

from __future__ import annotations

from typing import Any

from qlora_planner.memory import (
    PHASES,
    Basis,
    Component,
    ComponentLine,
    Fit,
    HostBytes,
    MemoryEstimate,
    Peak,
    Phase,
    StaticBytes,
)
from qlora_planner.memory.records import ModelFacts, ProfileOrigin
from qlora_planner.planner.survey.survey import SurveyRow
from qlora_planner.spec.machine import GpuSpec
from qlora_planner.spec.run import RunConfig

GIB = 1 << 30
CARD = GpuSpec(name="24GB", label="24GB card", memory_bytes=24 * GIB, note="24GB is taken as 24,576 MiB")
RUN = RunConfig(quant="nf4", compute_dtype="bfloat16", alpha=32, target_modules="all-linear", trainer="trl-sft")


def _device(phase: str, peak: int) -> int:
    return peak if phase == "backward" else peak - 1


def make_estimate(
    verdict: str | None = "fits", peak: int = 12 * GIB, usable: int = 23 * GIB, floor: int | None = None, **changes: Any
) -> MemoryEstimate:
    """An estimate whose components add up to `peak`."""
    floor = peak - GIB if floor is None else floor
    sizes = dict.fromkeys(Component, peak // 12)
    sizes[Component.CUDA_CONTEXT] += peak - sum(sizes.values())
    fit = None
    if verdict is not None:
        chance = {"fits": 0.00001, "tight": 0.03, "does-not-fit": 0.9999999, "will-not-run": None, "cannot-say": None}[
            verdict
        ]
        fit = Fit(
            gpu="24GB", capacity_bytes=24 * GIB, usable_bytes=usable, headroom_bytes=usable - peak, verdict=verdict,
            probability_oom=chance, reasons=("trl-sft refuses it; use --trainer hf-trainer",),
        )  # fmt: skip
    fields: dict[str, Any] = {
        "model": ModelFacts(
            id="org/some-model-7b", model_type="llama", params=7, trainable_params=1, text_part_of=None,
            profile=ProfileOrigin(source="catalogue", versions={}),
        ),
        "run": RUN,
        "resolved": {"alpha": "2 x rank"},
        "stack": {},
        "static": StaticBytes(after_load=1, after_prepare=1, after_adapters=1, before_training=1),
        "phases": tuple(
            Phase(name=name)
            if name in ("prepare", "eval")
            else Phase(name=name, allocated_bytes=peak - 3, reserved_bytes=peak - 2, device_bytes=_device(name, peak))
            for name in PHASES
        ),
        "lines": tuple(
            ComponentLine(component=part, size_bytes=size, basis=Basis.DERIVED, why=f"why of {part.value}")
            for part, size in sizes.items()
        ),
        "peak": Peak(
            phase="backward", allocated_bytes=peak - 3, reserved_bytes=peak - 2, device_bytes=peak,
            low_bytes=peak - GIB, high_bytes=peak + GIB,
        ),
        "floor_bytes": floor,
        "host": HostBytes(paged_bytes=1 << 26, offloaded_bytes=0, load_peak_bytes=None),
        "fit": fit,
    }  # fmt: skip
    return MemoryEstimate(**{**fields, **changes})


def make_row(model_id: str, params: float, verdict: str = "fits", family: str = "llama", **changes: Any) -> SurveyRow:
    """One row of a survey; `params` in billions."""
    peak = int(params * GIB)
    fields: dict[str, Any] = {
        "model_id": model_id, "family": family, "params": int(params * 1e9), "verdict": verdict, "run": RUN,
        "longest_seq_len": 4096 if verdict == "fits" else None, "largest_batch": 2 if verdict == "fits" else None,
        "peak_bytes": peak, "headroom_bytes": 23 * GIB - peak, "usable_bytes": 23 * GIB,
        "limiting": "quantized_weights", "shortfall_bytes": peak if verdict == "does-not-fit" else None, "note": None,
    }  # fmt: skip
    return SurveyRow(**{**fields, **changes})
