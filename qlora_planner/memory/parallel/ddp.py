"""DistributedDataParallel: what wrapping a model in it allocates, from the tensors' own shapes.

Sources, torch 2.11 to 2.13: nn/parallel/distributed.py (`_sync_module_states` broadcasts in groups of 250 MiB,
`_ddp_init_helper` reverses the buckets), csrc/distributed/c10d/reducer.cpp (`compute_bucket_assignment_by_size`,
`initialize_buckets`) and comm.cpp (`broadcast_coalesced`: two groups in flight, a group of one tensor is a view).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qlora_planner.catalog import DTYPE_BYTES, TrainerRow
from qlora_planner.memory.weights.loading import expand
from qlora_planner.memory.weights.placement import AddedTensor, PlacedTensor, Placement, module_of
from qlora_planner.memory.weights.trainable import training_dtype
from qlora_planner.record import record

MIB = 1 << 20
BROADCAST_BYTES = 250 * MIB
FIRST_BUCKET_BYTES, BUCKET_BYTES = MIB, 25 * MIB
IN_FLIGHT = 2

# A tensor's dtype and bytes.
Sized = tuple[str, int]


@record
class Wrapping:
    """Allocations of wrapping in their order, in bytes: flat copies of which two are alive at once, 0 for a view of a
    tensor that is there, and what stays through training."""

    passing: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def kept_bytes(self) -> int:
        """What stays."""
        return sum(self.kept)

    @property
    def most_passing(self) -> int:
        """The most that is alive of what passes."""
        return max((sum(self.passing[at : at + IN_FLIGHT]) for at in range(len(self.passing))), default=0)


def ddp_wrapping(placement: Placement, trainer: TrainerRow) -> Wrapping:
    """What `DistributedDataParallel(model)` allocates on every rank of a run as its trainer leaves the model.

    transformers takes every PEFT model for one with unused parameters, so buckets are cut once, by the order in which
    parameters are defined, and so they were in the runs that were measured. Told that none is unused, DDP has one
    bucket of each dtype, and cuts it anew after the first step by the order of gradients: the same bytes, but for what
    is left unsplit beside a block, which is a MiB of each at the most.
    """
    tensors = list(states(placement, trainer))
    groups = grouped((state for state, _ in tensors), (BROADCAST_BYTES,))
    buckets = grouped((state for state, trained in tensors if trained), (FIRST_BUCKET_BYTES, BUCKET_BYTES))
    return Wrapping(
        passing=tuple(sum(sizes) if len(sizes) > 1 else 0 for sizes in groups),
        kept=tuple(sum(sizes) for sizes in reversed(buckets)),
    )


def grouped(tensors: Iterable[Sized], limits: tuple[int, ...]) -> list[list[int]]:
    """Tensors put together by dtype, as c10d does: a group is closed once it is as large as its limit.

    The first group of a dtype has the first limit, later ones the next, the last limit for all that follow. Groups come
    back in the order of their first tensors.
    """
    open_groups: dict[str, tuple[int, list[int]]] = {}
    closed_of: dict[str, int] = {}
    done: list[tuple[int, list[int]]] = []
    for index, (dtype, size) in enumerate(tensors):
        first, sizes = open_groups.setdefault(dtype, (index, []))
        sizes.append(size)
        limit = limits[min(closed_of.get(dtype, 0), len(limits) - 1)]
        if sum(sizes) >= limit:
            done.append((first, sizes))
            del open_groups[dtype]
            closed_of[dtype] = closed_of.get(dtype, 0) + 1
    done += open_groups.values()
    return [sizes for _, sizes in sorted(done, key=lambda group: group[0])]


def states(placement: Placement, trainer: TrainerRow) -> Iterator[tuple[Sized, bool]]:
    """Every parameter, then every buffer, in the model's own order, each with whether it is trained."""
    beside: dict[int, list[AddedTensor]] = {}
    lasts = {module_of(weight): weight for weight in placement.weights}
    for added in placement.added:
        base = added.base
        if base is None and added.adapter is not None:
            # On bare parameters, as fused experts are: PEFT wraps their module, whose own come first.
            base = lasts.get(added.adapter.target)
        beside.setdefault(id(base), []).append(added)
    loose = beside.pop(id(None), [])
    buffers: list[Sized] = []
    for _, tensor in expand(placement):
        if tensor.group.tied_with:
            continue
        if tensor.group.buffer:
            buffers.append(_own(placement, tensor))
            continue
        trained = tensor.trained
        if trained is not None:
            dtype = training_dtype(trained.dtype, placement.run, trainer, trained.shape)
            yield (dtype, trained.numel * DTYPE_BYTES[dtype]), True
        else:
            yield _own(placement, tensor), False
        for added in beside.get(id(tensor), ()):
            for _ in range(added.tensor.count // tensor.group.count):
                yield _added(placement, trainer, added), True
    for added in loose:
        for _ in range(added.tensor.count):
            yield _added(placement, trainer, added), True
    for buffer in buffers:
        yield buffer, False


def _own(placement: Placement, tensor: PlacedTensor) -> Sized:
    """A frozen tensor: bitsandbytes keeps 4-bit weights as bytes, unless another dtype stores them."""
    if tensor.scheme is not None:
        dtype = "int8" if tensor.scheme.row_statistics else placement.run.quant_storage or "uint8"
        return dtype, tensor.weight_bytes
    return tensor.kept_dtype, tensor.kept_bytes


def _added(placement: Placement, trainer: TrainerRow, added: AddedTensor) -> Sized:
    dtype = training_dtype(added.tensor.dtype, placement.run, trainer, added.tensor.shape)
    return dtype, added.tensor.numel * DTYPE_BYTES[dtype]
