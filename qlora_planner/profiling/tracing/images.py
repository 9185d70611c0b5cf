"""Images in a traced micro-batch: what `train.images` places, as fake tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from qlora_planner.profiling.tracing.shadow import shadow_of
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers.common import Batch, fake
from qlora_planner.train.images import numbers_of, show


def with_images(inputs: Batch, spec: TraceSpec, config: Any) -> Batch:
    """The batch with the run's images in each sequence; as it is where the run has none.

    Raises InputError as `catalog.images.picture_of` does.
    """
    if not spec.run.images:
        return inputs
    with _disable_current_modes():
        ids, mask = _values(inputs["input_ids"]), _values(inputs["attention_mask"])
        made, parts = show(ids, mask, spec.run, config, labelled="labels" in inputs)
    result = {**inputs, **{name: fake(value, spec.device_name) for name, value in made.items()}}
    for part in parts:
        with _disable_current_modes():
            numbers = numbers_of(part)
        if numbers is None:
            result[part.name] = torch.empty(part.shape, dtype=torch.float32, device=spec.device_name)
        else:
            result[part.name] = fake(numbers, spec.device_name)
    return result


def _values(tensor: Any) -> torch.Tensor:
    value = shadow_of(tensor)
    assert value is not None
    return value
