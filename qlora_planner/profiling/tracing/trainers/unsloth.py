"""A step of Unsloth's SFTTrainer: the model's own loss, in chunks of rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from qlora_planner.errors import MissingError
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers import hf

inputs, evaluated, prepare, loss = hf.inputs, hf.evaluated, hf.prepare, hf.loss


@contextlib.contextmanager
def patches(_spec: TraceSpec) -> Iterator[None]:
    """Raises MissingError: its kernels are not followed."""
    raise MissingError("a step of Unsloth is not traced")
    yield
