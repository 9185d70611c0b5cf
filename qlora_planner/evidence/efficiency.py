"""What a card and its host reach of their rates: the only constants of the speed model, assumed or measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from qlora_planner.record import record


@record
class KernelEfficiency:
    """Fractions of a card's stated rates, and the host's seconds per act.

    `product_fraction` of the dense matrix rate is what large products reach, `attention_fraction` what fused attention
    does; `bandwidth_fraction` of the memory's bandwidth what kernels that move data do. `launch_s` is a kernel's launch
    from Python (forward, recompute), `engine_launch_s` from autograd's engine, `tensor_s` an optimizer's step over one
    tensor, `step_s` what a trainer does beside. `count` runs were measured for them, 0 for assumed ones;
    `mean_abs_log` is how far those runs were off when left out, as a mean absolute logarithm of the ratio.
    """

    product_fraction: float
    attention_fraction: float
    bandwidth_fraction: float
    launch_s: float
    engine_launch_s: float
    tensor_s: float
    step_s: float
    count: int = 0
    mean_abs_log: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


# Assumed where nobody measured: what an H200 and its host reached over 20 runs (profiles/calibrations/h200.json),
# rounded. There a bf16 product of 8192^3 alone reaches 0.80 of the data sheet's rate, and a copy 0.90 of its bandwidth;
# the shapes of real layers and strided kernels lose the rest. The host's times come with their share of the Python of
# transformers, PEFT and bitsandbytes; a desktop's faster cores may halve them.
ASSUMED = KernelEfficiency(
    product_fraction=0.75, attention_fraction=0.40, bandwidth_fraction=0.65, launch_s=65e-6, engine_launch_s=20e-6,
    tensor_s=60e-6, step_s=0.01,
)  # fmt: skip

FITTED = (
    "product_fraction", "attention_fraction", "bandwidth_fraction", "launch_s", "engine_launch_s", "tensor_s", "step_s",
)  # fmt: skip
# What a fit may give: a fraction of a stated rate, or a time between a microsecond and a tenth of a second.
BOUNDS = {name: (0.02, 1.0) if name.endswith("fraction") else (1e-7, 0.2) for name in FITTED}


def efficiency_faults(raw: Any, key: str) -> list[str]:
    """What is wrong with the JSON of one card's traits; none when they are fields of KernelEfficiency."""
    names = {spec.name for spec in fields(KernelEfficiency)}
    if type(raw) is not dict or set(raw) != names:
        return [f"{key} must have {', '.join(sorted(names))}"]
    faults = []
    for name, (low, high) in BOUNDS.items():
        value = raw[name]
        if type(value) not in (int, float) or not low <= value <= high:
            faults.append(f"{key}.{name} must be a number from {low:g} to {high:g}")
    if type(raw["count"]) is not int or raw["count"] < 0:
        faults.append(f"{key}.count must be a whole number from 0")
    error = raw["mean_abs_log"]
    if error is not None and (type(error) not in (int, float) or not 0 <= error <= 1e6):
        faults.append(f"{key}.mean_abs_log must be a number from 0, or null")
    return faults


def of_fitted(values: Mapping[str, float]) -> KernelEfficiency:
    """Traits by the names of `FITTED`, of no run yet."""
    return replace(ASSUMED, **dict[str, Any](values))
