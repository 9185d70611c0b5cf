"""What is read of a run while it goes."""

from __future__ import annotations

import gc
from typing import Any

from qlora_planner.measure import process
from qlora_planner.measure.meters import tensor_owners


def live_bytes(device: str) -> dict[str, Any]:
    """Memory now, beside a step: torch's figures on a card, resident host memory elsewhere."""
    if device != "cuda":
        return {"host_peak_bytes": process.rss_peak_bytes()}
    import torch

    return {
        "allocated_bytes": torch.cuda.memory_allocated(),
        "allocated_peak_bytes": torch.cuda.max_memory_allocated(),
        "reserved_bytes": torch.cuda.memory_reserved(),
    }


def paged_bytes(trainer: Any) -> int | None:
    """What the trainer's optimizer keeps in pages; None before there is one."""
    wrapped = getattr(trainer, "optimizer", None)
    optimizer = getattr(wrapped, "optimizer", wrapped)
    return None if optimizer is None else tensor_owners.paged_bytes(optimizer)


def give_back(device: str) -> None:
    """Collect garbage, and give what torch has cached back to the card."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
