"""What to trace: a resolved run, and the device for which its kernels are chosen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from qlora_planner.catalog.trainers import TrainerRow, Version, version_of
from qlora_planner.memory.options.resolve import Resolution
from qlora_planner.profiling.tracing.cuda.traits import CudaTraits
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.options import torch_dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSpec:
    """A resolved run on one device.

    `on_cpu`: what a CPU allocates, without any rule of `cuda/`, so that real CPU events can judge the rest.
    """

    resolution: Resolution
    device: CudaTraits = field(default_factory=CudaTraits)
    on_cpu: bool = False

    @property
    def run(self) -> RunConfig:
        """The run's options."""
        return self.resolution.run

    @property
    def trainer(self) -> TrainerRow:
        """The facts of its trainer."""
        return self.resolution.trainer

    @property
    def trainer_version(self) -> Version:
        """The version by which its trainer's loss differs (see `version_of`)."""
        return version_of(self.trainer, self.resolution.stack)

    @property
    def sequences(self) -> int:
        """Sequences in one micro-batch."""
        return self.run.batch_size * self.trainer.sequences_per_row

    @property
    def quantized(self) -> bool:
        """Whether linear layers are replaced by bitsandbytes' own."""
        return self.run.quant not in (None, "none")

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return _dtype(self.run.compute_dtype)

    @property
    def load_dtype(self) -> torch.dtype:
        """The dtype in which weights are loaded."""
        return _dtype(self.run.load_dtype)

    @property
    def device_name(self) -> str:
        """Where tensors are."""
        return "cpu" if self.on_cpu else "cuda"

    def with_run(self, **changes: Any) -> TraceSpec:
        """The same with some of the run's options changed; raises InputError for a bad value."""
        return replace(self, resolution=replace(self.resolution, run=self.run.with_(**changes)))


def _dtype(name: str | None) -> torch.dtype:
    dtype: torch.dtype = torch_dtype(name or "bfloat16")
    return dtype
