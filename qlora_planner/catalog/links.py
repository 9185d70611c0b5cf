"""What cards of one node talk over, by the card: its own link to others of its kind, else the bus that it is put in."""

from __future__ import annotations

from qlora_planner.spec.machine import GpuSpec, Link

# PCIe's bytes per second in one direction: 16 lanes at the rate of their generation, less its encoding (PCI-SIG: 985
# MB/s a lane for 3.0, 1,969 for 4.0, 3,938 for 5.0).
_PCIE = {3: 15_760_000_000, 4: 31_510_000_000, 5: 63_020_000_000}
# The bus of cards without NVLink, by compute capability and by name; of those with eight lanes nothing is said.
_BUS_OF_CAPABILITY = {"7.5": 3, "8.0": 4, "8.6": 4, "8.9": 4, "12.0": 5}
_BUS_OF_CARD = {"v100-pcie-16gb": 3, "v100-pcie-32gb": 3, "h100-pcie": 5, "h100-nvl": 5}
_EIGHT_LANES = ("rtx-3050", "rtx-4060", "rtx-5050", "rtx-5060", "a2", "rtx-2000-ada", "rtx-pro-2000")


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
