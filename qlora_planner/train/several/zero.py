"""DeepSpeed's ZeRO: the engine keeps float32 copies of what is trained, a share on each rank, and of stage 3 the model.

Facts are of DeepSpeed 0.19 and accelerate 1.15.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PLACE = "ds_id"  # stage 3 numbers what it cuts up


def cut_up(model: Any) -> bool:
    """Whether ranks hold shares of the model's own parameters."""
    return any(hasattr(parameter, _PLACE) for parameter in model.parameters())


def gathered(model: Any) -> dict[str, Any]:
    """Name -> whole tensor on the host of everything that is trained. Every rank has to call this."""
    import deepspeed

    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    whole: dict[str, Any] = {}
    for name, value in trained.items():  # one at a time: all of them would be whole on the card at once
        with deepspeed.zero.GatheredParameters([value]):
            whole[name] = value.detach().to("cpu", copy=True)
    return whole


@contextmanager
def taken_back(engine: Any, folder: Path) -> Iterator[None]:
    """What the engine steps meanwhile is undone by a checkpoint of its own in `folder`: its backward takes the step,
    and its states are nobody else's to set."""
    engine.save_checkpoint(str(folder), tag="before", exclude_frozen_parameters=True)
    try:
        yield
    finally:
        engine.load_checkpoint(str(folder), tag="before", load_module_strict=False)


def gradient_norm(engine: Any) -> float | None:
    """The norm of all gradients of the last step; None before one."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)
