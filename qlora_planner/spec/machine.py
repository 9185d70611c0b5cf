"""GpuSpec: one card's facts, each with where it comes from; and Machine: the cards that a run is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from qlora_planner.record import record


@record
class Fact:
    """Where one figure comes from, and when it was read (ISO date)."""

    source: str
    date: str


@record
class GpuSpec:
    """A card, or a bare size. `None` is unknown.

    `memory_bytes` is the total that NVML reports; `cuda_total_bytes` the smaller total that CUDA (and torch)
    reports for the same card, where someone has published it. Rates are dense, without sparsity.
    """

    name: str  # slug, e.g. rtx-4090; for a bare size, the text given
    label: str  # e.g. NVIDIA GeForce RTX 4090
    memory_bytes: int
    cuda_total_bytes: int | None = None
    aliases: tuple[str, ...] = ()
    vendor: str = "nvidia"
    form: str = "size"  # desktop, laptop, workstation, datacenter; size for a bare size
    marketed_gb: int | None = None
    bandwidth_bytes_per_s: int | None = None
    bf16_flops: int | None = None
    fp16_flops: int | None = None
    fp32_flops: int | None = None
    compute_capability: str | None = None
    bf16: bool | None = None
    rent_usd_per_hour: float | None = None
    shared_with_host: bool = False  # CPU and GPU have one memory, of which `memory_bytes` is all
    verified: bool = True  # False: nobody ran this project's stack on it (AMD)
    facts: Mapping[str, Fact] = field(default_factory=dict)
    note: str | None = None


@record
class Machine:
    """The cards that train one model, in the order of their ranks, spread evenly over `nodes`.

    `links` has what a card sends to the next one of its node, in bytes per second; None where nobody has said.
    One card, as everything plans for today, has no links.
    """

    gpus: tuple[GpuSpec, ...]
    links: tuple[int | None, ...] = ()
    nodes: int = 1

    @classmethod
    def of(cls, gpu: GpuSpec) -> Machine:
        """The machine of one card."""
        return cls(gpus=(gpu,))
