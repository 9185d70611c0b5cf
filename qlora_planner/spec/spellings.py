"""Values of a run's options as people write them: `8k` tokens, `4bit`, `bf16`, `fa2`. Each means one of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qlora_planner.spec.run import (
    COMPUTE_DTYPES,
    LOAD_DTYPES,
    LOSS_KERNELS,
    METHODS,
    PLACES,
    QUANTS,
    STORAGE_DTYPES,
    STRATEGIES,
    TASKS,
    TRAINERS,
)

QUANT_NAMES = {
    "4bit": "nf4", "4": "nf4", "int4": "nf4", "bnb": "nf4", "bnb4": "nf4", "bnb-4bit": "nf4", "bitsandbytes": "nf4",
    "8bit": "int8", "8": "int8", "bnb8": "int8", "bnb-8bit": "int8", "llm.int8": "int8",
    "16bit": "none", "16": "none", "bf16": "none", "bfloat16": "none", "fp16": "none", "float16": "none", "no": "none",
    "off": "none",
}  # fmt: skip
DTYPE_NAMES = {
    "bf16": "bfloat16", "torch.bfloat16": "bfloat16", "fp16": "float16", "half": "float16", "f16": "float16",
    "torch.float16": "float16", "fp32": "float32", "float": "float32", "f32": "float32", "torch.float32": "float32",
}  # fmt: skip
ATTENTION_NAMES = {
    "flash": "flash_attention_2", "flash2": "flash_attention_2", "flash-attn": "flash_attention_2",
    "flash-attn-2": "flash_attention_2", "flash-attention": "flash_attention_2", "fa2": "flash_attention_2",
    "fa": "flash_attention_2", "math": "eager",
}  # fmt: skip
METHOD_NAMES = {"16bit-lora": "lora", "full-finetune": "full", "full-finetuning": "full", "fft": "full"}
LOSS_NAMES = {
    "cce": "cut-cross-entropy", "cut": "cut-cross-entropy", "liger": "liger-fused", "flce": "liger-fused",
    "whole": "full",
}  # fmt: skip
STRATEGY_NAMES = {
    "fsdp": "fsdp2", "fully_shard": "fsdp2", "data-parallel": "ddp", "zero-2": "zero2", "zero-3": "zero3",
    "stage2": "zero2", "stage3": "zero3", "deepspeed": "zero3", "pp": "pipeline", "device_map": "pipeline",
}  # fmt: skip
PLACE_NAMES = {"cuda": "gpu", "card": "gpu", "device": "gpu", "host": "cpu", "ram": "cpu"}
TASK_NAMES = {"seq-cls": "classification", "sequence-classification": "classification", "cls": "classification"}

_THOUSANDS = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*k", re.IGNORECASE)
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+")
_SIGNS = str.maketrans("", "", "-_ .")
_CHOICES: Mapping[str, tuple[tuple[str, ...], Mapping[str, str]]] = {
    "method": (METHODS, METHOD_NAMES),
    "quant": (QUANTS, QUANT_NAMES),
    "compute_dtype": (COMPUTE_DTYPES, DTYPE_NAMES),
    "load_dtype": (LOAD_DTYPES, DTYPE_NAMES),
    "attention": ((), ATTENTION_NAMES),
    "task": (TASKS, TASK_NAMES),
    "loss_kernel": (LOSS_KERNELS, LOSS_NAMES),
    "parallel": (STRATEGIES, STRATEGY_NAMES),
    "quant_storage": (STORAGE_DTYPES, DTYPE_NAMES),
    "load_on": (PLACES, PLACE_NAMES),
}
_TOKENS = ("seq_len",)


def tokens_meant(text: str) -> int | None:
    """`8k` is 8,192, as context lengths are named: 1,024 times the number. `8,192` is itself. None for other words."""
    text = text.strip()
    if shortened := _THOUSANDS.fullmatch(text):
        tokens = float(shortened[1]) * 1024
        return int(tokens) if tokens == int(tokens) else None
    return int(text.replace(",", "")) if _GROUPED.fullmatch(text) else None


def choice_meant(name: str, choices: tuple[str, ...], also: Mapping[str, str]) -> str | None:
    """Which of `choices` a name stands for, in any case and with any of `-`, `_`, `.` and space; None for none."""
    names = {_key(other): choice for other, choice in also.items()} | {_key(choice): choice for choice in choices}
    return names.get(_key(name))


def meant(options: Mapping[str, Any], trainers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Options of a run with what is meant in place of every value that is written otherwise; the rest as it is.

    `trainers` are other names of trainers.

    >>> meant({"seq_len": "8k", "quant": "4bit", "rank": 32})
    {'seq_len': 8192, 'quant': 'nf4', 'rank': 32}
    """
    choices = {**_CHOICES, "trainer": (TRAINERS, trainers or {})}
    return {name: _value(name, value, choices) for name, value in options.items()}


def _value(name: str, value: Any, choices_of: Mapping[str, tuple[tuple[str, ...], Mapping[str, str]]]) -> Any:
    if not isinstance(value, str):
        return value
    if name in _TOKENS:
        tokens = tokens_meant(value)
        return value if tokens is None else tokens
    choices, also = choices_of.get(name, ((), {}))
    return value if value in choices else choice_meant(value, choices, also) or value


def _key(name: str) -> str:
    return name.strip().lower().translate(_SIGNS)
