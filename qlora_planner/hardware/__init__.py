"""Hardware records: what a card is, by the driver's own figures."""

from qlora_planner.hardware.catalogue import GpuCatalogue
from qlora_planner.hardware.remarks import Remark, remarks
from qlora_planner.hardware.sizes import MARKETED_SIZES, MarketedSize, marketed_size, parse_gpu, usable_bytes
from qlora_planner.hardware.spec import Fact, GpuSpec

__all__ = [
    "MARKETED_SIZES",
    "Fact",
    "GpuCatalogue",
    "GpuSpec",
    "MarketedSize",
    "Remark",
    "marketed_size",
    "parse_gpu",
    "remarks",
    "usable_bytes",
]
