"""Preparing a loaded model and adding adapters to it, as the run says."""

from __future__ import annotations

import re
from typing import Any

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.options import checkpointing_options, lora_options
from qlora_planner.train.unsloth import model as unsloth


def prepare(model: Any, run: RunConfig) -> Any:
    """PEFT's `prepare_model_for_kbit_training` where the run upcasts; else the model as it is."""
    if not run.upcast or run.method == "full":
        return model
    import peft

    return peft.prepare_model_for_kbit_training(
        model,
        use_gradient_checkpointing=run.gradient_checkpointing,
        gradient_checkpointing_kwargs=checkpointing_options(run),
    )


def add_adapters(model: Any, run: RunConfig) -> Any:
    """The model with LoRA adapters; as it is for a full fine-tune, and where the run's trainer adds them itself.

    PEFT's refusals pass through.
    """
    if run.method == "full":
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return model
    row = trainer_named(run.trainer)
    if row.adds_adapters:
        return model
    if row.patches_libraries:
        return unsloth.add_adapters(model, run)
    import peft

    return peft.get_peft_model(model, lora_config(model, run))


def lora_config(model: Any, run: RunConfig) -> Any:
    """PEFT's LoraConfig of the run; None for a full fine-tune."""
    if run.method == "full":
        return None
    import peft

    names = attention_modules(model) if run.target_modules == "attention" else None
    return peft.LoraConfig(**lora_options(run, names))


def attention_modules(model: Any) -> list[str]:
    """Full names of the linear modules that sit directly in an attention module."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and re.search(r"attention|attn", type(model.get_submodule(name.rpartition(".")[0])).__name__, re.IGNORECASE)
    ]


def trainable_params(model: Any) -> int:
    """Elements of all parameters that receive gradients."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def total_params(model: Any) -> int:
    """Elements of all weights before packing: a 4-bit matrix counts what it stands for. Adapters are left out."""
    total = 0
    for name, parameter in model.named_parameters():
        if "lora_" in name or ".modules_to_save." in name:
            continue
        state = getattr(parameter, "quant_state", None)
        shape = None if state is None else getattr(state, "shape", None)
        total += parameter.numel() if shape is None else _elements(shape)
    return total


def _elements(shape: Any) -> int:
    total = 1
    for size in shape:
        total *= int(size)
    return total
