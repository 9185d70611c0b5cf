"""Catalogues: one row per quantisation scheme, optimizer and trainer. Facts as data, with their source."""

from qlora_planner.catalog.dtypes import DTYPE_BYTES
from qlora_planner.catalog.optimizers import OPTIMIZERS, OptimizerRow, StateTensor, find_optimizer
from qlora_planner.catalog.quantization import SCHEMES, QuantScheme, quantized_tensor_bytes
from qlora_planner.catalog.trainers import TRAINER_ROWS, LossMemory, TrainerRow, trainer_named, trainer_row

__all__ = [
    "DTYPE_BYTES",
    "OPTIMIZERS",
    "SCHEMES",
    "TRAINER_ROWS",
    "LossMemory",
    "OptimizerRow",
    "QuantScheme",
    "StateTensor",
    "TrainerRow",
    "find_optimizer",
    "quantized_tensor_bytes",
    "trainer_named",
    "trainer_row",
]
