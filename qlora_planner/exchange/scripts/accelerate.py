"""accelerate's launch config of a run on one GPU."""

from __future__ import annotations

from typing import Any

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.exchange.commented_yaml import document
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.options import compute_dtype

# What accelerate calls the dtypes of autocast.
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}


def config(run: RunConfig) -> dict[str, Any]:
    """What `accelerate launch --config_file` reads: one process, one GPU, the precision of the run's autocast."""
    # The plain loop has no autocast, and accelerate would put one around its model.
    precision = _PRECISIONS[compute_dtype(run)] if trainer_named(run.trainer).autocast else "no"
    return {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": "NO",
        "downcast_bf16": "no",
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": precision,
        "num_machines": 1,
        "num_processes": 1,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
    }


def render(run: RunConfig, heading: list[str]) -> str:
    """The config as YAML; what it cannot hold is said above it."""
    notes = ["accelerate launch --config_file accelerate.yaml train.py (the script is --export trl=train.py)"]
    if run.alloc_conf is not None:
        notes.append(f"Set PYTORCH_ALLOC_CONF={run.alloc_conf} in the environment: this file has no place for it.")
    return document(config(run), [*heading, *notes])
