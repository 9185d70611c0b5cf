"""Ways to train on several cards: a row a strategy, and what talking between cards takes of each.

Facts are of torch 2.13, accelerate 1.15, transformers 5.17, bitsandbytes 0.50 and DeepSpeed 0.19.
"""

from __future__ import annotations

from qlora_planner.record import record

MIB = 1 << 20
GLOO = "gloo"  # talks through the host's memory: what several ranks on one card have, and ranks without a card
DDP, FSDP2, FSDP1, ZERO2, ZERO3, PIPELINE = "ddp", "fsdp2", "fsdp1", "zero2", "zero3", "pipeline"
# Strategies whose memory is played, and those of which bounds are known.
PLAYED, BOUNDED = (DDP, FSDP2), (FSDP1, ZERO2, ZERO3, PIPELINE)
DEEPSPEED = (ZERO2, ZERO3)  # the strategies that run on its engine
# What `--optimizer` is where nobody names one, and what takes its place where bitsandbytes' optimizers break.
USUAL_OPTIMIZER, PLAIN_OPTIMIZER = "paged_adamw_8bit", "adamw_torch_fused"


@record
class StrategyRow:
    """One strategy. `label` is for people, `distributed_type` accelerate's word for it, None for one process.

    `shards`: weights are split between cards, so that 4-bit ones have to be stored in the dtype that is computed in;
    `plain_optimizer`: bitsandbytes' optimizers break; `loads_on`: where weights are loaded if nobody says;
    `communicators`: NCCL's, of each card; `says`: what becomes of a card's memory.
    """

    name: str
    label: str
    distributed_type: str | None
    shards: bool = False
    plain_optimizer: bool = False
    loads_on: str = "gpu"
    communicators: int = 1
    says: str


STRATEGY_ROWS = {
    row.name: row
    for row in (
        StrategyRow(
            name=DDP, label="DDP", distributed_type="MULTI_GPU",
            says="every card holds the whole run, and a copy of the gradients to reduce them in",
        ),
        StrategyRow(
            name=FSDP2, label="FSDP2", distributed_type="FSDP", shards=True, plain_optimizer=True, loads_on="cpu",
            says="each card holds a share of the weights and gathers one layer at a time",
        ),
        StrategyRow(
            name=FSDP1, label="FSDP1", distributed_type="FSDP", shards=True, loads_on="cpu",
            says="each card holds a share of the weights in flat parameters and gathers one layer at a time",
        ),
        StrategyRow(
            name=ZERO2, label="ZeRO-2", distributed_type="DEEPSPEED", communicators=2,
            says="every card holds all weights, and a share of gradients and optimizer states",
        ),
        StrategyRow(
            name=ZERO3, label="ZeRO-3", distributed_type="DEEPSPEED", shards=True, communicators=2,
            says="each card holds a share of the weights between steps, and all of them in backward",
        ),
        StrategyRow(
            name=PIPELINE, label="pipeline", distributed_type=None, communicators=0,
            says="each card holds some of the layers, and cards take turns",
        ),
    )
}  # fmt: skip


def strategy_row(name: str) -> StrategyRow:
    """The row of a strategy that is known."""
    return STRATEGY_ROWS[name]


@record
class CommunicationRow:
    """Bytes of a process in NVML that NCCL takes: of its first communicator, of each further one, and how far the
    first may be off."""

    first_bytes: int
    further_bytes: int
    low_bytes: int
    high_bytes: int
    measured: bool
    why: str


# Measured on two H200s (NV18, NCCL 2.28.9, NVLS off): +840 MiB at the first all-reduce, 4 more over all collectives up
# to 1 GiB, +488 for a second communicator. What more ranks, another link or another card take was not measured.
_FIRST, _FURTHER = 844 * MIB, 488 * MIB
_MEASURED = ("h200", 2)
# torch makes all streams of its pools, 32 of each of four priorities, when the first beside the main one is asked for
# (c10/cuda/CUDAStream.cpp): a process on an H200 grew by it at gloo's first collective, and in the first gather of a
# rank played alone. Of what NCCL's first communicator takes it is a part already.
STREAM_POOL_BYTES = 70 * MIB
ASSUMED_LOW, ASSUMED_HIGH = 200 * MIB, 1_700 * MIB


def communication_row(gpu_name: str, world: int, nodes: int) -> CommunicationRow:
    """What NCCL takes of a card that is one of `world` on `nodes` nodes: measured, or assumed and said."""
    if (gpu_name, world) == _MEASURED and nodes == 1:
        return CommunicationRow(
            first_bytes=_FIRST, further_bytes=_FURTHER, low_bytes=_FIRST - 4 * MIB, high_bytes=_FIRST + 4 * MIB,
            measured=True, why="NCCL takes 844 MiB of each of two H200s, measured",
        )  # fmt: skip
    return CommunicationRow(
        first_bytes=_FIRST, further_bytes=_FURTHER, low_bytes=ASSUMED_LOW, high_bytes=ASSUMED_HIGH, measured=False,
        why="NCCL is assumed to take 844 MiB as on two H200s, 200 to 1,700 MiB: not measured on these cards",
    )  # fmt: skip
