"""Random weights in the shape of a checkpoint, cheap on the host: views of one buffer as large as its largest."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Enough distinct values for quantisation to meet every code; drawing more costs seconds per billion.
_DRAWN = 1 << 20
# The spread that most classes initialise with: activations stay finite through any depth.
_SPREAD = 0.02


def skeleton(model_class: Any, config: Any, dtype: torch.dtype) -> Any:
    """The model without storage; its non-persistent buffers too are on the meta device."""
    import torch
    from transformers import initialization

    with torch.device("meta"), initialization.no_init_weights():
        return model_class._from_config(config, dtype=dtype)


def random_state_dict(
    model_class: Any, config: Any, dtype: torch.dtype, *, stored: torch.dtype, tied_stored: bool = True
) -> dict[str, Any]:
    """Every tensor of a checkpoint of this model, with `tied_stored` tied copies too, filled with small random numbers.

    All floating tensors are views of one host buffer of dtype `stored`, which loading must copy: to another device, or
    to another dtype where it stays on the host. Training on aliases of one buffer would be nonsense.
    """
    import torch

    model = skeleton(model_class, config, dtype)
    left_out = set() if tied_stored else set(model.all_tied_weights_keys)
    stored_names = {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in stored_names.items()}
    largest = max((prod(shape) for shape, kind in shapes.values() if kind.is_floating_point), default=1)
    drawn = torch.randn(min(_DRAWN, largest), generator=torch.Generator().manual_seed(0)).mul_(_SPREAD)
    buffer = drawn.to(stored).repeat(-(-largest // drawn.numel()))
    return {
        name: buffer[: prod(shape)].view(shape) if kind.is_floating_point else torch.zeros(shape, dtype=kind)
        for name, (shape, kind) in shapes.items()
    }
