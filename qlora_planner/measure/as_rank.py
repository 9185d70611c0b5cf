"""One process that plays one rank of several: torch's fake process group allocates what collectives do, and sends
nothing.

Numbers are garbage then, bytes are not: played alone on one H200, rank 0 of two held what it held on two of them, to
the megabyte (FSDP2; an 8B and a 70B). What NCCL takes of a card is not in it. DDP cannot be played so: its reducer
asserts on the result of a fake collective (torch 2.11). Facts are of torch 2.13 and accelerate 1.15 (utils/launch.py).
"""

from __future__ import annotations

import os

from qlora_planner.catalog.parallel import FSDP2
from qlora_planner.spec.run import RunConfig

# Strategies that one process plays alone.
PLAYED_ALONE = (FSDP2,)
NOTE = (
    "one rank played alone: nothing was sent, so losses mean nothing, step times lack the link, and NCCL took nothing"
    " and is no part of what is predicted"
)


def join(run: RunConfig, rank: int, world: int, device: str) -> None:
    """Make this process rank `rank` of `world`, before a model is loaded or a trainer's arguments are made."""
    import torch.distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ.update(launch_environment(run, rank, world))
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    if device == "cpu":
        _on_the_host()


def launch_environment(run: RunConfig, rank: int, world: int) -> dict[str, str]:
    """What `accelerate launch` sets for such a rank; every rank here is the first of its node, on the card there is."""
    reshard = run.reshard_after_forward is not False
    return {
        "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_RESHARD_AFTER_FORWARD": str(reshard).lower(),
        "FSDP_OFFLOAD_PARAMS": "false", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_ACTIVATION_CHECKPOINTING": "false",
    }  # fmt: skip


def _on_the_host() -> None:
    """Let a CPU stand for a card, as `Ranks.begin` does, which makes a second group that a fake one cannot have."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
