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


def load_peak_bytes(profile: ModelProfile, run: RunConfig, machine: Machine | None) -> int | None:
    """The most that loading takes of one node's host memory: every rank's own, and the checkpoint once.

    The checkpoint's files are mapped: all ranks of a node share their pages, and the kernel takes them back when it
    needs room. Loading on the CPU holds the quantised model of every rank as well. None on one card, where nobody
    measured it apart.
    """
    if machine is None or machine.world == 1:
        return None
    checkpoint = _LOADED * profile.params
    own = RANK_BYTES
    if run.load_on == "cpu":
        own += static_memory(Placement(profile, run)).after_load
    return machine.gpus_per_node * own + checkpoint
