"""GpuSpec: one card's facts, each with where it comes from; and Machine: the cards that a run is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

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
    link: str | None = None  # what it reaches others of its kind in a node by, where that is no bus: NVLink 4
    link_bytes_per_s: int | None = None  # one direction's, of all its links together
    node_network_bytes_per_s: int | None = None  # each card's part of what its node reaches others over, one direction
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
class Link:
    """What carries bytes between two cards of a node; `bytes_per_s` is one direction's, None where nobody said."""

    kind: str  # NVLink 4, PCIe 4.0 x16
    bytes_per_s: int | None = None


@record
class Network:
    """What carries bytes between nodes: a node's adapters, all together in one direction. `assumed`: nobody named them,
    they are those of a node as the card's file says."""

    kind: str  # 8x400Gb
    bytes_per_s: int
    assumed: bool = False


@record
class Machine:
    """The cards that train one model, in the order of their ranks, spread evenly over `nodes`.

    `link` is what the cards of a node talk over; None for one card, and where nobody has said. `network` is what nodes
    talk over; None for one node, and where nobody has said.
    """

    gpus: tuple[GpuSpec, ...]
    nodes: int = 1
    link: Link | None = None
    network: Network | None = None

    @classmethod
    def of(
        cls,
        gpu: GpuSpec,
        gpus_per_node: int = 1,
        nodes: int = 1,
        link: Link | None = None,
        network: Network | None = None,
    ) -> Machine:
        """A machine of so many of one card."""
        return cls(gpus=(gpu,) * (gpus_per_node * nodes), nodes=nodes, link=link, network=network)

    @property
    def world(self) -> int:
        """How many cards there are, and ranks of a run on them."""
        return len(self.gpus)

    @property
    def gpus_per_node(self) -> int:
        """Cards of one node."""
        return len(self.gpus) // self.nodes

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        link = None if self.link is None else {"kind": self.link.kind, "bytes_per_s": self.link.bytes_per_s}
        own = {"nodes": self.nodes, "gpus_per_node": self.gpus_per_node, "link": link}
        if self.nodes == 1:
            return own
        network = self.network
        over = network and {"kind": network.kind, "bytes_per_s": network.bytes_per_s, "assumed": network.assumed}
        return {**own, "network": over}
