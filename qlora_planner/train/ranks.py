"""This process as one rank of a run on several cards, or of one on several processes of a CPU that stand for cards.

accelerate makes the process group and wraps the model; here is what a run must agree on beside that. Facts are of
accelerate 1.15 and transformers 5.17.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from qlora_planner.catalog.parallel import DEEPSPEED, FSDP1, FSDP2, GLOO
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.several import flat, zero

# How a process is told that it is one of several: the environment may be that of a launcher around all of this.
RANK = "--rank"


class Ranks:
    """Rank `rank` of `world`, `local` on its node. Alone in the world every verb returns at once."""

    def __init__(self, rank: int = 0, world: int = 1, local: int = 0) -> None:
        self.rank, self.world, self.local = rank, world, local
        self._host: Any = None

    @classmethod
    def from_environment(cls) -> Ranks:
        """As torchrun tells a process, which `accelerate launch` starts its processes by."""
        rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return cls(rank, world, local)

    @property
    def first(self) -> bool:
        """Whether this rank writes, and speaks for all."""
        return self.rank == 0

    def begin(self, run: RunConfig, device: str) -> None:
        """Join the others: before a model is loaded, so that each rank has its own card by then."""
        if self.world == 1:
            return
        import torch.distributed
        from accelerate import PartialState

        if device == "cpu":
            # accelerate numbers its ranks' CPUs, and torch (2.13) loads no optimizer's states to one with a number.
            os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        named = {} if run.ddp_backend is None else {"backend": run.ddp_backend}
        if device == "cuda":
            PartialState(**named)
        elif run.parallel in DEEPSPEED:
            PartialState(backend=GLOO)  # asked for a CPU, it would leave DeepSpeed out
        else:
            PartialState(cpu=True)
        if device == "cpu" and run.parallel in (FSDP1, FSDP2):
            _stand_for_cards()
        # What is agreed on must not wait for a card's work, and NCCL moves nothing of the host's.
        self._host = torch.distributed.new_group(backend="gloo")

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        self.total([0])

    def total(self, numbers: Sequence[int]) -> list[int]:
        """The sum of each number over all ranks."""
        if self.world == 1:
            return list(numbers)
        import torch

        summed = torch.tensor(list(numbers), dtype=torch.int64)
        torch.distributed.all_reduce(summed, group=self._host)
        return [int(number) for number in summed]


def _stand_for_cards() -> None:
    """Have accelerate take gloo's ranks for cards: it knows FSDP on accelerators alone, and makes DDP of it on a CPU
    without a word (`state.py: AcceleratorState.__init__`)."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def local_part(tensor: Any) -> Any:
    """The shard that this rank holds of a tensor that is spread over ranks, any other as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # without importing what makes such


def parameter_bytes(model: Any) -> int:
    """Bytes of all parameters that this rank holds, each once, with what pads a shard to the length of the others'."""
    storages = {}
    for parameter in model.parameters():
        share = getattr(parameter, "ds_tensor", parameter)  # ZeRO-3's shares lie beside what is gathered
        storage = local_part(share.detach()).untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def gathered(model: Any) -> dict[str, Any] | None:
    """Name -> whole tensor on the host of everything that is trained, where ranks hold shards; else None.

    Every rank has to call this. A 4-bit base is neither gathered nor needed for an adapter.
    """
    if any(True for _ in flat.units(model)):
        return flat.gathered(model)
    if zero.cut_up(model):
        return zero.gathered(model)
    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    if not any(hasattr(value, "full_tensor") for value in trained.values()):
        return None
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).cpu() for name, value in trained.items()
    }
