"""Images in a micro-batch: the placeholders among its token ids, and the tensors beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from qlora_planner.catalog.images import Shown, reader_of, shown_by
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers.common import IGNORED, Batch, fake
from qlora_planner.profiling.whole import image_dims

_FIRST_TEXT = 8  # tokens before the first image, as a chat template has some


def with_images(inputs: Batch, spec: TraceSpec, config: Any) -> Batch:
    """The batch with the run's images in each sequence; as it is where the run has none.

    Raises InputError as `catalog.images.picture_of` does.
    """
    if not spec.run.images:
        return inputs
    dims = image_dims(config)
    rows, length = inputs["input_ids"].shape
    shown = shown_by(config.model_type, dims, spec.run.with_(seq_len=length), rows)
    assert shown is not None
    reader = reader_of(config.model_type)
    placeholders = _placeholders(shown)
    placeholder = next(
        value for name in ("image_token_id", "image_token_index") if (value := getattr(config, name, None)) is not None
    )
    with _disable_current_modes():
        ids = _values(inputs["input_ids"])
        # Text must not hold a placeholder by accident.
        ids = torch.where(ids == placeholder, ids + 1, ids).masked_fill(placeholders, int(placeholder))
        mask = _values(inputs["attention_mask"])
        labels = ids.masked_fill(mask == 0, IGNORED) if "labels" in inputs else None
        marks = (~placeholders if reader.marks_text else placeholders).to(torch.int64)
        if labels is not None and reader.marks_text:
            labels = labels.masked_fill(placeholders, IGNORED)
    added: Batch = {"input_ids": ids, "labels": labels}
    if reader.marks is not None:
        added[reader.marks] = marks
    result = {**inputs, **{name: fake(value, spec.device_name) for name, value in added.items() if value is not None}}
    for part in reader.inputs(dims, shown):
        if part.values is None and part.filled is None:
            result[part.name] = torch.empty(part.shape, dtype=torch.float32, device=spec.device_name)
            continue
        with _disable_current_modes():
            if part.values is None:
                values = torch.full(part.shape, part.filled, dtype=torch.int64)
            else:
                values = torch.tensor(part.values, dtype=torch.int64).view(part.shape)
        result[part.name] = fake(values, spec.device_name)
    return result


def _values(tensor: Any) -> torch.Tensor:
    from qlora_planner.profiling.tracing.shadow import shadow_of

    value = shadow_of(tensor)
    assert value is not None
    return value


def _placeholders(shown: Shown) -> torch.Tensor:
    """Which tokens stand for images, the same in every row."""
    with _disable_current_modes():
        placeholders = torch.zeros((shown.rows, shown.seq_len), dtype=torch.bool)
        begin = min(_FIRST_TEXT, shown.seq_len - shown.images * shown.picture.all_tokens)
        for _ in range(shown.images):
            first = begin + (shown.picture.beside + 1) // 2
            placeholders[:, first : first + shown.picture.tokens] = True
            begin += shown.picture.all_tokens
    return placeholders
