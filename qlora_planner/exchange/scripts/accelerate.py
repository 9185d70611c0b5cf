"""accelerate's launch config of a run, on one GPU or on several."""

from __future__ import annotations

from typing import Any

from qlora_planner.catalog.parallel import DDP, DEEPSPEED, FSDP1, FSDP2, PIPELINE, ZERO2, ZERO3, strategy_row
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.errors import InputError
from qlora_planner.exchange.commented_yaml import document
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.options import compute_dtype

# What accelerate calls the dtypes of autocast.
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}
_SCRIPT = "the script is --export trl=train.py"


def config(run: RunConfig, gpus_per_node: int = 1, nodes: int = 1) -> dict[str, Any]:
    """What `accelerate launch --config_file` reads: the processes, the precision of the run's autocast, its strategy.

    Raises InputError for a pipeline, which is one process that accelerate refuses to launch.
    """
    if run.parallel == PIPELINE:
        raise InputError("--export accelerate: a pipeline is one process, and accelerate refuses a model so spread")
    # The plain loop has no autocast, and accelerate would put one around its model.
    precision = _PRECISIONS[compute_dtype(run)] if trainer_named(run.trainer).autocast else "no"
    row = None if run.parallel is None else strategy_row(run.parallel)
    written: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": "NO" if row is None else row.distributed_type,
        "downcast_bf16": "no",
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": precision,
        "num_machines": nodes,
        "num_processes": gpus_per_node * nodes,
        "rdzv_backend": "static" if nodes == 1 else "c10d",
        "same_network": True,
        "use_cpu": False,
    }
    if nodes > 1:
        written |= {"main_process_ip": "HOST", "main_process_port": 29500}
    if run.parallel in (FSDP1, FSDP2):
        written["fsdp_config"] = _fsdp(run)
    if run.parallel in DEEPSPEED:
        written["deepspeed_config"] = _deepspeed(run)
    return written


def _fsdp(run: RunConfig) -> dict[str, Any]:
    """What accelerate's FSDP plugin is told; checkpointing stays the trainer's."""
    own: dict[str, Any] = {
        "fsdp_version": 2 if run.parallel == FSDP2 else 1,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_offload_params": False,
        "fsdp_cpu_ram_efficient_loading": False,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_activation_checkpointing": False,
    }
    if run.parallel == FSDP2:
        return {**own, "fsdp_reshard_after_forward": run.reshard_after_forward is not False}
    return {
        **own, "fsdp_sharding_strategy": "FULL_SHARD", "fsdp_use_orig_params": False, "fsdp_sync_module_states": True,
    }  # fmt: skip


def _deepspeed(run: RunConfig) -> dict[str, Any]:
    return {
        "zero_stage": 2 if run.parallel == ZERO2 else 3,
        "gradient_accumulation_steps": run.grad_accum,
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "zero3_init_flag": False,
        "zero3_save_16bit_model": run.parallel == ZERO3,
    }


def quantises_on_host(run: RunConfig) -> bool:
    """Whether every rank quantises its 4-bit weights on the CPU while it loads."""
    return run.load_on == "cpu" and run.quant in ("nf4", "fp4") and run.parallel in (FSDP1, FSDP2)


def render(run: RunConfig, heading: list[str], gpus_per_node: int = 1, nodes: int = 1) -> str:
    """The config as YAML; what it cannot hold is said above it. Raises InputError as `config` does."""
    notes = [f"accelerate launch --config_file accelerate.yaml train.py ({_SCRIPT})"]
    if nodes > 1:
        notes = [
            f"On each of {nodes} nodes, with machine_rank 0 to {nodes - 1} and HOST the address of the first:",
            *notes,
            "or without this file, where the strategy is DDP:",
            f"torchrun --nnodes {nodes} --nproc_per_node {gpus_per_node} --rdzv_backend c10d"
            " --rdzv_endpoint HOST:29500 train.py",
        ]
    if run.parallel == DDP:
        notes.append("Every card holds the whole run. The script sets ddp_find_unused_parameters: false.")
    if run.parallel in (FSDP1, FSDP2):
        notes += [
            "mixed_precision must be the dtype of bnb_4bit_quant_storage in the script, or weights are garbage.",
            "fsdp_cpu_ram_efficient_loading does nothing for 4-bit models; SHARDED_STATE_DICT would save no adapter.",
        ]
    if quantises_on_host(run):
        notes.append(
            "Weights are quantised on the host, in one thread a rank where nothing is said: set OMP_NUM_THREADS to the"
            f" cores of a node / {gpus_per_node}."
        )
    if run.alloc_conf is not None:
        notes.append(f"Set PYTORCH_ALLOC_CONF={run.alloc_conf} in the environment: this file has no place for it.")
    return document(config(run, gpus_per_node, nodes), [*heading, *notes])


def launch_config(run: RunConfig, ranks: int, device: str) -> str:
    """The config that this program starts a run's ranks with on the cards of this machine, or on its CPU, where
    accelerate (1.15) sends nobody the first rank's tensors and every rank has the same."""
    written = config(run, ranks)
    if run.parallel == FSDP1 and device == "cpu":
        written["fsdp_config"]["fsdp_sync_module_states"] = False
    return document(written, ["What `accelerate launch` starts the ranks of this run with."])
