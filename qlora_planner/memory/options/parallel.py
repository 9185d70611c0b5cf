"""What a strategy for several cards makes of a run's options, and which combinations break or mislead.

Each rule is from the libraries' own code: accelerate 1.15 (`utils/fsdp_utils.py`, `accelerator.py: prepare_model`),
transformers 5.17 (`trainer.py: _build_accelerator_args`, `training_args.py`), trl 1.16 (`sft_trainer.py`), bitsandbytes
0.50.2 and torch 2.13 (`distributed/fsdp`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qlora_planner.catalog import find_optimizer
from qlora_planner.catalog.parallel import DDP, FSDP1, FSDP2, PIPELINE, PLAIN_OPTIMIZER, ZERO2, ZERO3, strategy_row
from qlora_planner.catalog.trainers import parse_version, trainer_named
from qlora_planner.memory.records import Problem
from qlora_planner.spec.run import RunConfig

# bitsandbytes' kernels take no DTensor: its optimizers, in 8 or 32 bits, paged or not.
_FSDP1_GONE = (5, 20)


def settled(run: RunConfig, *, stored: bool = False) -> dict[str, tuple[object, str]]:
    """What a strategy calls for where nobody said: values with the reason, by option. `run` has its dtypes.

    `stored`: whether the checkpoint is quantised by bitsandbytes already, whose 4-bit weights are bytes.
    """
    if run.parallel is None:
        return {}
    row = strategy_row(run.parallel)
    four_bit = run.quant in ("nf4", "fp4")
    settled: dict[str, tuple[object, str]] = {}
    storage = run.quant_storage
    if stored and four_bit and storage is None:
        storage = "uint8"
        settled["quant_storage"] = storage, "the checkpoint is stored so, whatever is asked for"
    elif storage is None and four_bit:
        if row.shards and row.name != ZERO3:
            dtype = run.compute_dtype or "bfloat16"
            settled["quant_storage"] = dtype, "sharded weights must have the dtype that is computed in"
        else:
            settled["quant_storage"] = "uint8", f"the default, which {row.label} takes"
    if run.load_on is None and four_bit and storage == "uint8" and row.name == FSDP2:
        settled["load_on"] = "gpu", "FSDP2 leaves weights stored as uint8 out, which have to be on the card by then"
    elif run.load_on is None:
        why = f"every rank of {row.label} loads the whole model first; the host holds it until it is sharded"
        settled["load_on"] = row.loads_on, why if row.loads_on == "cpu" else "each rank onto its own card"
    if run.reshard_after_forward is None and row.name == FSDP2:
        settled["reshard_after_forward"] = True, "gathered weights are given back after each layer"
    return settled


def parallel_problems(run: RunConfig, stack: Mapping[str, str], *, stored: bool = False) -> Iterator[Problem]:
    """What this stack refuses or breaks on of a run on several cards, and what it does in silence.

    `stored`: whether the checkpoint is quantised by bitsandbytes already.
    """
    name = run.parallel
    if name is None:
        return
    if stored and name in (FSDP1, FSDP2) and run.quant_storage not in (None, "uint8") and run.quant in ("nf4", "fp4"):
        yield _refuse(
            "storage-refused",
            "the checkpoint stores 4-bit weights as uint8, and so they stay (bitsandbytes' from_prequantized)",
            "a checkpoint in 16 bits, which is quantised when it is loaded",
        )
    if name in (FSDP1, FSDP2):
        yield from _of_fsdp(run, stack)
    elif name == ZERO3:
        yield from _of_zero3(run)
    elif name == ZERO2:
        yield _advise(
            "zero2-saves-nothing",
            "ZeRO-2 shards gradients and optimizer states, which LoRA hardly has, and takes buffers of a gigabyte for"
            " it: an 8B needs 7,788 MiB where one card alone needs 6,812",
            "--parallel ddp",
        )
    elif name == PIPELINE:
        yield from _of_pipeline(run)
    elif name == DDP:
        yield from _of_ddp(run)
    if run.reshard_after_forward is not None and name != FSDP2:
        yield _refuse(
            "reshard-refused", f"{strategy_row(name).label} gathers nothing that it could keep", "--parallel fsdp2"
        )
    if run.load_on == "meta":
        yield _refuse(
            "load-on-refused",
            "transformers 5 quantises the whole model on every rank: one that loads for all is gone for 4-bit weights",
            "--load-on cpu",
        )


def _of_fsdp(run: RunConfig, stack: Mapping[str, str]) -> Iterator[Problem]:
    first = run.parallel == FSDP1
    label, four_bit = strategy_row(run.parallel or FSDP2).label, run.quant in ("nf4", "fp4")
    optimizer = find_optimizer(run.optimizer)
    if first and parse_version(stack.get("transformers", "0")) >= _FSDP1_GONE:
        yield _refuse("fsdp1-gone", "transformers took FSDP1 out in 5.20", "--parallel fsdp2")
    if not first and optimizer is not None and optimizer.kind == "bnb":
        yield _refuse(
            "optimizer-refused",
            f"bitsandbytes' {run.optimizer} stops at the first step of FSDP2: its kernels take no DTensor",
            f"--optimizer {PLAIN_OPTIMIZER}",
        )
    storage, compute = run.quant_storage, run.compute_dtype or "bfloat16"
    if four_bit and storage == "uint8" and first:
        yield _refuse("storage-refused", "FSDP1 cannot flatten weights stored as uint8", f"--quant-storage {compute}")
    elif four_bit and storage == "uint8" and run.load_on == "cpu":
        yield _refuse(
            "storage-refused",
            "FSDP2 leaves weights stored as uint8 out, so that those loaded on the CPU would stay there",
            f"--quant-storage {compute}",
        )
    elif four_bit and storage == "uint8":
        yield _advise(
            "storage-whole",
            "weights stored as uint8 are left whole on every card, only the rest is sharded, and accelerate says so in"
            " one warning on rank 0",
            f"--quant-storage {compute}",
        )
    elif four_bit and storage is not None and storage != compute:
        yield _refuse(
            "storage-refused",
            f"weights stored as {storage} would be reinterpreted under {compute} mixed precision: {label} trains on"
            " garbage without a word",
            f"--quant-storage {compute}",
        )
    if four_bit and run.load_on == "gpu":
        whole = " and then keeps it while it makes the shards" if not first else ""
        yield _advise(
            "loads-whole",
            f"transformers loads the whole 4-bit model onto every card before anything is sharded{whole}, whatever"
            " fsdp_cpu_ram_efficient_loading says",
            "--load-on cpu",
        )
    if first:
        yield _advise(
            "fsdp1-adapter-unsaved",
            "a trainer's own checkpoints and final save hold an adapter without a tensor: PEFT 0.21 looks for adapters"
            " by names of modules that FSDP1 has changed (two H200s); `qlora-plan train` saves it whole",
            "--parallel fsdp2",
        )
    if first and run.optimizer == "paged_adamw_8bit":
        yield _advise(
            "fsdp1-optimizer-unsaved",
            "PEFT's own notes have it that saving a checkpoint with paged_adamw_8bit fails under FSDP",
            f"--optimizer {PLAIN_OPTIMIZER}",
        )
    if not first:
        yield _advise(
            "full-state-dict",
            "accelerate's default, SHARDED_STATE_DICT, saves no adapter at the end",
            "fsdp_state_dict_type: FULL_STATE_DICT",
        )
        if run.compute_dtype != "float32":
            yield _advise(
                "loss-rounded",
                f"FSDP2's mixed precision rounds the logged loss to {compute}, 11.75 for 11.7621: its curve has stairs",
                "an evaluation, to compare runs by",
            )


def _of_zero3(run: RunConfig) -> Iterator[Problem]:
    if run.load_on == "cpu":
        yield _refuse(
            "load-on-refused", "DeepSpeed ZeRO-3 refuses every device_map, so each rank loads onto its card",
            "--load-on gpu",
        )  # fmt: skip
    yield _advise(
        "zero3-gathers-all",
        "ZeRO-3 holds every gathered weight in backward: a Llama-2-70B at batch 2 took 56,414 MiB on each of two cards,"
        " where FSDP2 trains in 27,200",
        "--parallel fsdp2",
    )


def _of_pipeline(run: RunConfig) -> Iterator[Problem]:
    if trainer_named(run.trainer).loss_beside_head:
        yield _advise(
            "pipeline-head",
            "trl-sft stops where the head is on another card than the first (its loss and its token count are on two):"
            " `qlora-plan train` puts it there, a script of your own needs a device_map with lm_head on card 0",
            "--trainer hf-trainer",
        )
    yield _advise(
        "pipeline-takes-turns",
        "one process drives every card, one after the other: no faster than one card; accelerate refuses it under"
        " `accelerate launch` and torchrun",
        "--parallel fsdp2",
    )


def _of_ddp(run: RunConfig) -> Iterator[Problem]:
    if run.use_reentrant and run.gradient_checkpointing:
        yield _advise(
            "ddp-reentrant",
            "transformers looks for unused parameters of every PEFT model, and reentrant checkpointing then stops with"
            " 'marked ready twice'",
            "ddp_find_unused_parameters: false",
        )


def _refuse(code: str, message: str, fix: str) -> Problem:
    return Problem(code=code, message=message, fix=fix, blocking=True)


def _advise(code: str, message: str, fix: str) -> Problem:
    return Problem(code=code, message=message, fix=fix)
