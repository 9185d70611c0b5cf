"""What the libraries leave undone when a trainer takes up a checkpoint: everything as it was when it was saved.

PEFT loads 16-bit adapters as float32 (`load_adapter` casts unless it is told not to, and the trainer does not tell it).
torch and bitsandbytes then cast optimizer states to the dtype that the parameter has at that moment, and bitsandbytes
puts paged states into ordinary memory of the card.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEDULER = "scheduler.pt"


def keep_dtypes(trainer: Any, model: Any) -> None:
    """Have `trainer` bring trained parameters back in the dtypes that they have now whenever it has read a checkpoint.

    Reading 16 bits as 32 lost nothing. It has to be then: DDP wraps the model next, and a parameter that changes its
    dtype afterwards loses the hook by which ranks add up its gradient, without a word (torch 2.13).
    """
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters() if parameter.requires_grad}
    load = trainer._load_from_checkpoint

    def loaded(*arguments: Any, **named: Any) -> None:
        load(*arguments, **named)
        for name, parameter in model.named_parameters():
            if name in dtypes and parameter.dtype != dtypes[name]:
                parameter.data = parameter.data.to(dtypes[name])

    trainer._load_from_checkpoint = loaded


def restore_schedule(trainer: Any, checkpoint: Path) -> None:
    """The learning rates of the checkpoint, where its optimizer states are left behind."""
    import torch

    trainer.lr_scheduler.load_state_dict(torch.load(checkpoint / SCHEDULER, weights_only=True))


def restore_states(trainer: Any, path: Path) -> None:
    """Optimizer states in the dtype, the bits and the kind of memory that they had when they were saved at `path`;
    nothing where they are no file, as engines that share them keep their own."""
    import torch

    wrapped = trainer.optimizer
    optimizer = getattr(wrapped, "optimizer", wrapped)
    if not path.is_file():
        return
    saved = torch.load(path, map_location="cpu", weights_only=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        state = optimizer.state.get(parameter, {})
        for key, value in _flat(saved["state"].get(number, {})).items():
            current = state.get(key)
            if not isinstance(value, torch.Tensor) or not isinstance(current, torch.Tensor):
                continue
            paged = _paged_buffer(optimizer, parameter, key, value)
            if paged is not None:
                paged.copy_(value)
                state[key] = paged
            elif current.dtype != value.dtype:
                state[key] = value.to(current.device)


def _flat(state: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's states by name: bitsandbytes saves its own in a mapping inside, and takes them out to load."""
    states: dict[str, Any] = {}
    for key, value in state.items():
        states |= value if isinstance(value, dict) else {key: value}
    return states


def _paged_buffer(optimizer: Any, parameter: Any, key: str, value: Any) -> Any:
    """Managed memory for this state, made as bitsandbytes makes it at first; None for what it does not page."""
    if not getattr(optimizer, "is_paged", False) or key not in ("state1", "state2") or parameter.device.type == "cpu":
        return None
    double = value.numel() == 2 * parameter.numel()  # AdEMAMix keeps its two first moments together
    make = optimizer._get_state_double_buffer if double else optimizer.get_state_buffer
    buffer = make(parameter, dtype=value.dtype)
    return buffer if getattr(buffer, "is_paged", False) else None
