"""Fused experts in 4 bits: what no figure of such a run counts."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_planner.memory.records import MemoryEstimate, Unmodelled
from qlora_planner.memory.weights.placement import Placement, stores_experts
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig


def of_kernels(profile: ModelProfile, estimate: MemoryEstimate) -> Iterator[Unmodelled]:
    """What multiplies 4-bit experts, of which no kernel is counted.

    bitsandbytes' own way (nn/parametrize.py) makes a whole weight in 16 bits where it is used, and autograd keeps it
    for backward: with checkpointing the experts of the layer that is computed, and as much again while they are made.
    """
    run = estimate.run
    layer = _layer_experts_bytes(profile, run) if run.expert_quant == "nf4" else 0
    if not layer:
        return
    bounded = run.gradient_checkpointing and (run.checkpoint_every or 1) == 1
    yield Unmodelled(
        key="--expert-quant nf4",
        what="static bytes are counted; what the kernels of 4-bit experts make beside them in a step is not",
        direction="up",
        at_most=round(2 * layer / max(estimate.peak.device_bytes, 1), 4) if bounded else None,
    )


def _layer_experts_bytes(profile: ModelProfile, run: RunConfig) -> int:
    """The fused experts of the largest layer, in 16 bits."""
    by_kind: dict[str, int] = {}
    for group in (weight.group for weight in Placement(profile, run).weights):
        if stores_experts(group) and group.layer_kind is not None and not group.quantized:
            by_kind[group.layer_kind] = by_kind.get(group.layer_kind, 0) + 2 * group.numel
    return max(by_kind.values(), default=0)
