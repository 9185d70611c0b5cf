"""A resolved RunConfig in the words of Unsloth's loader, adapters and trainer: what verify, train and scripts say.

Facts of unsloth 2026.10.9: models/loader.py and models/llama.py (`from_pretrained`, `get_peft_model`).
"""

from __future__ import annotations

from typing import Any

from qlora_planner.errors import InputError
from qlora_planner.spec.run import RunConfig
from qlora_planner.train import options

# What it was given when it was loaded, or has a switch of its own for.
_NOT_ITS_TRAINERS = ("gradient_checkpointing", "use_liger", "liger")
SEED = 3407


def loading_options(run: RunConfig) -> dict[str, Any]:
    """Arguments of `FastLanguageModel.from_pretrained`, with the dtype by its name; no torch is needed.

    The model that was planned for, not a checkpoint of Unsloth's own in which some layers stay in 16 bits.
    """
    return {
        "max_seq_length": run.seq_len,
        "dtype": options.compute_dtype(run),
        "load_in_4bit": run.method == "qlora",
        "load_in_16bit": run.method != "qlora",
        "use_gradient_checkpointing": checkpointing(run),
        "use_exact_model_name": True,
    }


def adapter_options(run: RunConfig) -> dict[str, Any]:
    """Arguments of `FastLanguageModel.get_peft_model`.

    Raises InputError where the adapters' modules are known by their class alone.
    """
    if run.target_modules == "attention":
        raise InputError("--target-modules attention: Unsloth takes names of modules, or all-linear")
    adapters = options.lora_options(run)
    for name in ("task_type", "use_dora"):
        adapters.pop(name)
    if run.dora:
        adapters["use_dora"] = True
    return {**adapters, "bias": "none", "use_gradient_checkpointing": checkpointing(run), "random_state": SEED}


def checkpointing(run: RunConfig) -> str | bool:
    """Its own, which hands the inputs of layers to the host; or none."""
    return "unsloth" if run.gradient_checkpointing else False


def trainer_options(run: RunConfig, shared: dict[str, Any]) -> dict[str, Any]:
    """Arguments of SFTConfig: those of `shared` that are the trainer's to decide, and those of texts."""
    own = {name: value for name, value in shared.items() if not name.startswith(_NOT_ITS_TRAINERS)}
    return {**own, "max_length": run.seq_len, "packing": run.packing, "dataset_text_field": "text"}
