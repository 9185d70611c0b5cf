"""The runs whose steps are timed, one at a time on the card: what a speed model is calibrated with and judged by.

Whole models at full depth, decided before anything is measured; roles by hash, as in `campaign_cases`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.campaign_cases import Asked

# The first step warms kernels and caches up and is left out.
STEPS = 6

_8B = "meta-llama/Llama-3.1-8B"
_HF: dict[str, Any] = {"trainer": "hf-trainer"}
_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("default", {}),
    ("short", {"seq_len": 512}),
    ("batch", {"batch_size": 4, "seq_len": 1024, "padding": False}),
    ("wide", {"batch_size": 8, "seq_len": 2048, "padding": False}),
    ("long", {"seq_len": 8192}),
    ("kept", {"gradient_checkpointing": False}),
    ("kept-batch", {"gradient_checkpointing": False, "batch_size": 4, "seq_len": 512, "padding": False}),
    ("hf", _HF),
    ("hf-no-upcast", {**_HF, "upcast": False, "batch_size": 4, "seq_len": 1024, "padding": False}),
    ("16-bit", {"method": "lora", "batch_size": 4, "seq_len": 1024, "padding": False}),
    ("16-bit-kept", {"method": "lora", "gradient_checkpointing": False}),
    ("int8", {"quant": "int8"}),
    ("no-dropout", {"lora_dropout": 0.0}),
    ("attention-only", {"target_modules": "attention"}),
    ("rank-64", {"rank": 64}),
    ("rank-256", {"rank": 256, "seq_len": 1024}),
    ("eager", {"attention": "eager"}),
    ("accumulated", {"grad_accum": 4, "seq_len": 1024}),
    ("padded", {"batch_size": 4, "seq_len": 1024}),
    ("packed", {"packing": True, "batch_size": 2, "seq_len": 2048}),
    ("loop", {"trainer": "loop", "seq_len": 1024, "optimizer": "adamw_torch"}),
    ("offloaded", {"activation_offloading": True, "seq_len": 4096}),
    ("liger-hf", {**_HF, "liger": True, "batch_size": 2, "seq_len": 1024, "padding": False}),
    ("flat", {"double_quant": False}),
)
_MODELS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Qwen/Qwen2.5-0.5B", {"batch_size": 8, "seq_len": 1024, "padding": False}),
    ("Qwen/Qwen2.5-0.5B", {"method": "full", "optimizer": "adamw_torch"}),
    ("meta-llama/Llama-3.2-1B", {}),
    ("Qwen/Qwen2.5-1.5B", {"batch_size": 4, "seq_len": 2048, "padding": False}),
    ("google/gemma-2-2b", {"batch_size": 2, "seq_len": 2048, "padding": False}),
    ("Qwen/Qwen2.5-3B", {"seq_len": 4096}),
    ("meta-llama/Llama-3.2-3B", {**_HF, "batch_size": 2, "seq_len": 1024, "padding": False}),
    ("google/gemma-3-4b", {}),
    ("Qwen/Qwen3-4B", {"batch_size": 4, "seq_len": 1024, "padding": False}),
    ("mistralai/Mistral-7B-v0.1", {"seq_len": 4096}),
    ("Qwen/Qwen2.5-7B", {"batch_size": 2, "seq_len": 1024, "padding": False}),
    ("EleutherAI/pythia-6.9b", {"batch_size": 2, "seq_len": 1024, "padding": False}),
    ("google/gemma-2-9b", {"seq_len": 4096}),
    ("meta-llama/Llama-2-13b-hf", {"batch_size": 2, "seq_len": 2048, "padding": False}),
    ("Qwen/Qwen1.5-MoE-A2.7B", {}),
    ("microsoft/phi-4", {"seq_len": 2048}),
    ("openai/gpt-oss-20b", {}),
    ("Qwen/Qwen2.5-32B", {"batch_size": 2, "seq_len": 1024, "padding": False}),
    ("meta-llama/Llama-3.1-70B", {"seq_len": 1024}),
)


def asked_runs() -> Iterator[Asked]:
    """Every timed run."""
    for name, options in _OPTIONS:
        needs = ("liger_kernel",) if options.get("liger") else ()
        yield Asked(name=f"time-8b-{name}", model_id=_8B, options=options, needs=needs, whole=True)
    for model_id, options in _MODELS:
        words = "-".join(f"{value}" for value in options.values())
        name = f"time-{model_id.rpartition('/')[2]}-{words or 'default'}"
        yield Asked(name=name, model_id=model_id, options=options, whole=True)
