"""FSDP1: every unit's parameters are one flat tensor, of which a rank holds a share. Facts are of torch 2.11 to 2.13.

accelerate's own way to save (1.15, `utils/fsdp_utils.py`) asks torch for the state of every unit, and on the CPU 4-bit
weights stop it. Here a rank keeps its own shares, and adapters alone are brought together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRAPPED = "_fsdp_wrapped_module."


def units(model: Any) -> Iterator[tuple[str, Any]]:
    """The flat parameters that are trained, each with what the names of its parts begin with; none under another
    engine."""
    for name, module in model.named_modules():
        flat = module._parameters.get("_flat_param")
        if flat is not None and flat.requires_grad:
            yield f"{name}.".replace(_WRAPPED, ""), flat


def gathered(model: Any) -> dict[str, Any]:
    """Name -> whole tensor on the host of everything that is trained. Every rank has to call this."""
    import torch

    whole: dict[str, Any] = {}
    world = torch.distributed.get_world_size()
    for name, flat in units(model):
        share = flat.detach()
        joined = torch.empty(share.numel() * world, dtype=share.dtype, device=share.device)
        torch.distributed.all_gather_into_tensor(joined, share.contiguous())
        parts = joined.split([*flat._numels, joined.numel() - sum(flat._numels)])  # the last ranks' shares are padded
        for part, shape, own in zip(parts, flat._shapes, flat._fqns, strict=False):
            whole[name + own] = part.view(shape).cpu()
    return whole


def file_of(checkpoint: str | Path, rank: int) -> Path:
    """Where a rank keeps its shares of what is trained."""
    return Path(checkpoint) / f"shares-{rank}.pt"


def save(model: Any, checkpoint: str | Path, rank: int) -> None:
    """Write this rank's shares."""
    import torch

    torch.save({name: flat.detach().cpu() for name, flat in units(model)}, file_of(checkpoint, rank))


def load(model: Any, checkpoint: str | Path, rank: int) -> None:
    """Take this rank's shares up again, to the bit."""
    import torch

    shares = torch.load(file_of(checkpoint, rank), map_location="cpu", weights_only=True)
    for name, flat in units(model):
        flat.data.copy_(shares[name])


@contextmanager
def plain_names(model: Any) -> Iterator[None]:
    """Have a model's modules called as they were before they were wrapped: PEFT (0.21, `save_and_load.py`) looks for
    adapters by these names, and saves none where FSDP1 stands between them."""
    named = model.named_modules
    model.named_modules = lambda *given, **more: (
        (name.replace(_WRAPPED, ""), part) for name, part in named(*given, **more)
    )
    try:
        yield
    finally:
        del model.named_modules
