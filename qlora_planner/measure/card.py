"""The card that a measurement runs on, as NVML and torch name it."""

from __future__ import annotations

from qlora_planner.catalog.cuda import cublas_workspace_bytes
from qlora_planner.errors import MissingError
from qlora_planner.evidence import CardReading
from qlora_planner.measure.nvml import visible_devices
from qlora_planner.record import record


@record
class Card:
    """One card. `nvml_index` is NVML's number for it; None figures are unknown."""

    name: str
    nvml_index: int
    capacity_bytes: int | None
    compute_capability: str | None
    driver: str | None

    @classmethod
    def find(cls, index: int) -> Card:
        """Visible card `index`; where NVML is missing, what torch knows of it.

        Raises MissingError when there is no such card.
        """
        try:
            visible = visible_devices()
        except MissingError as error:
            return cls._from_torch(index, str(error))
        if index >= len(visible):
            raise MissingError(f"GPU {index} is not here: {len(visible)} visible; see nvidia-smi -L")
        card = visible[index]
        return cls(
            name=card.name or "GPU",
            nvml_index=card.index,
            capacity_bytes=card.total_bytes,
            compute_capability=card.compute_capability,
            driver=card.driver_version,
        )

    @classmethod
    def _from_torch(cls, index: int, no_nvml: str) -> Card:
        import torch

        if index >= torch.cuda.device_count():
            raise MissingError(f"GPU {index} is not here: {no_nvml}")
        properties = torch.cuda.get_device_properties(index)
        return cls(
            name=properties.name,
            nvml_index=index,
            capacity_bytes=None,
            compute_capability=f"{properties.major}.{properties.minor}",
            driver=None,
        )

    @property
    def workspace_bytes(self) -> int:
        """One cuBLAS workspace on this card."""
        return cublas_workspace_bytes(self.compute_capability)

    def reading(self) -> CardReading:
        """The card as a measurement keeps it."""
        return CardReading(
            name=self.name, capacity_bytes=self.capacity_bytes, compute_capability=self.compute_capability
        )

    def versions(self) -> dict[str, str]:
        """Versions of the driver and of torch's CUDA."""
        import torch

        versions = {"cuda": torch.version.cuda, "driver": self.driver}
        return {name: version for name, version in versions.items() if version is not None}
