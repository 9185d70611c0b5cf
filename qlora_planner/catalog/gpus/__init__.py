"""Hardware records: what a card is, by the driver's own figures."""

from qlora_planner.catalog.gpus.catalogue import GpuCatalogue
from qlora_planner.catalog.gpus.remarks import Remark, remarks
from qlora_planner.catalog.gpus.sizes import MARKETED_SIZES, MarketedSize, marketed_size, parse_gpu, usable_bytes
from qlora_planner.spec.machine import Fact, GpuSpec

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
