"""Optimizers as they allocate: torch's own classes run on fake tensors, bitsandbytes' after its source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_BLOCK = 256  # bitsandbytes/optim/optimizer.py, blockwise states
_SMALL = 4096  # min_8bit_size: smaller tensors keep fp32 states
_PAGED = 100_000  # get_state_buffer: p.numel() < 1e5 is not paged


class BitsAndBytesOptimizer:
    """States of bitsandbytes' optimizers (optim/optimizer.py). Paged ones live outside torch's allocator."""

    def __init__(self, parameters: Sequence[nn.Parameter], *, states: int, bits: int, paged: bool) -> None:
        self.parameters = list(parameters)
        self.states, self.bits, self.paged = states, bits, paged
        self.kept: list[torch.Tensor] = []
        self._ready = False

    def step(self) -> None:
        """Create the states at the first step; the update itself is in place."""
        if self._ready:
            return
        self._ready = True
        maps = False
        for parameter in self.parameters:
            if parameter.grad is None:
                continue
            small = parameter.numel() < _SMALL
            dtype = torch.uint8 if self.bits == 8 and not small else torch.float32
            if dtype is torch.uint8 and not maps:
                maps = True
                self.kept += [torch.empty(256, dtype=torch.float32, device="cuda") for _ in range(2)]
            for _ in range(self.states):
                if not (self.paged and parameter.numel() >= _PAGED):
                    self.kept.append(torch.zeros_like(parameter, dtype=dtype, requires_grad=False))
            if dtype is torch.uint8:
                blocks = -(-parameter.numel() // _BLOCK)
                self.kept += [torch.zeros((blocks,), dtype=torch.float32, device="cuda") for _ in range(self.states)]


def make(name: str, parameters: Sequence[nn.Parameter]) -> Any:
    """The optimizer that transformers' Trainer builds for this name.

    Raises ValueError for names it does not know.
    """
    # On CUDA torch chooses foreach by itself, but not for fake tensors.
    parts = name.removeprefix("paged_")
    if parts in (
        "adamw_8bit",
        "adamw_bnb_8bit",
        "adamw_32bit",
        "lion_8bit",
        "lion_32bit",
        "lion",
        "ademamix_8bit",
        "ademamix",
        "rmsprop_bnb",
        "rmsprop_bnb_8bit",
        "rmsprop_bnb_32bit",
    ):
        return BitsAndBytesOptimizer(
            parameters,
            states=2 if parts.startswith("ad") else 1,
            bits=8 if parts.endswith("8bit") else 32,
            paged=name.startswith("paged_"),
        )
    if name == "paged_adamw":
        return BitsAndBytesOptimizer(parameters, states=2, bits=32, paged=True)
    if name in ("adamw_torch", "adamw_hf"):
        return torch.optim.AdamW(parameters, lr=1e-4, foreach=True)
    if name == "adamw_torch_fused":
        return torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=1e-4, foreach=True)
    if name == "adagrad":
        return torch.optim.Adagrad(parameters, lr=1e-4, foreach=True)
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=1e-4, foreach=True)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, lr=1e-4, scale_parameter=False, relative_step=False)
    raise ValueError(f"optimizer {name!r} has no memory rule")
