"""PEFT where it computes with weights that do not exist while tracing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn


def _magnitude(self: Any, *, lora_A: Any, lora_B: Any, **_others: Any) -> None:
    """DoRA's magnitude: one number per output, in the adapter's dtype, instead of a norm of weights."""
    self.weight = nn.Parameter(torch.empty(lora_B.shape[0], dtype=lora_A.dtype, device="meta"), requires_grad=True)


def _dense(module: Any) -> Any:
    """peft.utils.integrations.dequantize_module_weight for weights that carry their state in plain parameters."""
    import bitsandbytes as bnb

    weight = module.weight
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return bnb.functional.dequantize_4bit(weight.data, state)
    int8 = getattr(module, "state", None)
    if int8 is not None and getattr(int8, "SCB", None) is not None:
        return bnb.functional.int8_vectorwise_dequant(weight.data, int8.SCB)
    return weight


@contextlib.contextmanager
def dora_on_meta() -> Iterator[None]:
    """Within this context DoRA layers can be created on meta and run on fake tensors."""
    import peft.tuners.lora.dora as dora

    with (
        mock.patch.object(dora.DoraLinearLayer, "update_layer", _magnitude),
        mock.patch.object(dora, "dequantize_module_weight", _dense),
    ):
        yield
