"""What loading takes of the host's memory on a machine of several cards."""

from __future__ import annotations

from qlora_planner.catalog import DTYPE_BYTES
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.memory.weights.static import static_memory
from qlora_planner.spec.machine import Machine
from qlora_planner.spec.model import ModelProfile
from qlora_planner.spec.run import RunConfig

# Anonymous memory of a rank with its libraries, CUDA and NCCL: 1.3 to 1.6 GiB read on two H200s before loading.
RANK_BYTES = 1_638 << 20
_LOADED = DTYPE_BYTES["bfloat16"]


def load_file_bytes(profile: ModelProfile, machine: Machine | None) -> int | None:
    """The checkpoint's files as they are mapped while it is read: once a node, in pages that all its ranks share and
    that the kernel takes back when it needs room. None on one card, where nobody measured it apart."""
    return None if machine is None or machine.world == 1 else _LOADED * profile.params


def load_peak_bytes(profile: ModelProfile, run: RunConfig, machine: Machine | None) -> int | None:
    """The most that loading takes of one node's host memory: every rank's own, and the checkpoint once.

    The rest beside `load_file_bytes` is anonymous: libraries, CUDA and NCCL of each rank, and the quantised model of
    each where it is loaded on the CPU. None on one card.
    """
    files = load_file_bytes(profile, machine)
    if machine is None or files is None:
        return None
    own = RANK_BYTES
    if run.load_on == "cpu":
        own += static_memory(Placement(profile, run)).after_load
    return machine.gpus_per_node * own + files
