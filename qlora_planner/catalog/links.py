"""What cards talk over: in one node, by the card, its own link to others of its kind, else the bus that it is put in;
between nodes, the adapters that somebody named."""

from __future__ import annotations

import re

from qlora_planner.errors import InputError
from qlora_planner.spec.machine import GpuSpec, Link, Machine, Network
from qlora_planner.text import quoted

# PCIe's bytes per second in one direction: 16 lanes at the rate of their generation, less its encoding (PCI-SIG: 985
# MB/s a lane for 3.0, 1,969 for 4.0, 3,938 for 5.0).
_PCIE = {3: 15_760_000_000, 4: 31_510_000_000, 5: 63_020_000_000}
# The bus of cards without NVLink, by compute capability and by name; of those with eight lanes nothing is said.
_BUS_OF_CAPABILITY = {"7.5": 3, "8.0": 4, "8.6": 4, "8.9": 4, "12.0": 5}
_BUS_OF_CARD = {"v100-pcie-16gb": 3, "v100-pcie-32gb": 3, "h100-pcie": 5, "h100-nvl": 5}
_EIGHT_LANES = ("rtx-3050", "rtx-4060", "rtx-5050", "rtx-5060", "a2", "rtx-2000-ada", "rtx-pro-2000")
# 400Gb, 8x400Gb, 3.2Tb; people write the same rate as Gbit, Gbps, Gb/s or GbE.
_NETWORK = re.compile(r"(?:(\d{1,3})\s*[x×*]\s*)?(\d{1,6}(?:\.\d{1,3})?)\s*([gGtT])(?:b|bit|bits|bps|b/s|bit/s|bE|be)")
_BITS = {"g": 10**9, "t": 10**12}
_MOST_BITS = 10**15


def machine_of(gpu: GpuSpec, gpus_per_node: int = 1, nodes: int = 1, network: Network | None = None) -> Machine:
    """So many of one card in each node with what they talk over, nodes by `network` where somebody named one."""
    if gpus_per_node * nodes == 1:
        return Machine.of(gpu)
    between = network or network_of(gpu, gpus_per_node) if nodes > 1 else None
    return Machine.of(gpu, gpus_per_node, nodes, link_of(gpu), between)


def network_of(gpu: GpuSpec, gpus_per_node: int) -> Network | None:
    """What a node of such cards reaches others over where nobody named it: an adapter for each card, of the rate in the
    card's file; None where that says nothing."""
    each = gpu.node_network_bytes_per_s
    if each is None:
        return None
    return Network(kind=_kind(gpus_per_node, 8 * each), bytes_per_s=gpus_per_node * each, assumed=True)


def parse_network(text: str, name: str = "--node-network") -> Network:
    """What a node reaches others over, as `400Gb`, `8x400Gb` or `3.2Tb`: bits a second of one direction, all
    adapters of a node together. Raises InputError for what is no rate in bits."""
    read = _NETWORK.fullmatch(text.strip()[:40])
    bits = 0 if read is None else int(float(read[2]) * _BITS[read[3].lower()])
    if read is None or not 0 < bits <= _MOST_BITS or int(read[1] or 1) < 1:
        raise InputError(
            f"{name}: {quoted(text)} is no rate of a node's network; write bits a second, as 100Gb, or 8x400Gb for"
            " eight adapters"
        )
    count = int(read[1] or 1)
    return Network(kind=_kind(count, bits), bytes_per_s=count * bits // 8)


def _kind(count: int, bits: int) -> str:
    return f"{f'{count}x' if count > 1 else ''}{bits / 10**9:g}Gb"


def link_of(gpu: GpuSpec) -> Link | None:
    """The link between cards of this kind in one node, which the card's file may name; None for a bare size and where
    nobody has said."""
    if gpu.link is not None:
        return Link(kind=gpu.link, bytes_per_s=gpu.link_bytes_per_s)
    generation = _BUS_OF_CARD.get(gpu.name) or _BUS_OF_CAPABILITY.get(gpu.compute_capability or "")
    if gpu.vendor != "nvidia" or gpu.form in ("size", "laptop") or gpu.shared_with_host or generation is None:
        return None
    if any(gpu.name == name or gpu.name.startswith(f"{name}-") for name in _EIGHT_LANES):
        return None
    return Link(kind=f"PCIe {generation}.0 x16", bytes_per_s=_PCIE[generation])
