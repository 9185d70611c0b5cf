"""Between what and what a card of several needs, for strategies whose steps are not played.

A bound is a sum of things that are known whole: what is stored of the model, what one card's playing holds beside it,
and what the engine gathers or buffers. Sources: torch 2.13 distributed/fsdp (FSDP1: the root unit stays gathered, one
layer is in use and one comes), DeepSpeed 0.19 runtime/zero (stage_1_and_2.py: `reduce_bucket_size`; stage3.py: in
backward no gathered weight is given back).
"""

from __future__ import annotations

from qlora_planner.catalog import DTYPE_BYTES, TrainerRow, find_optimizer
from qlora_planner.catalog.parallel import FSDP1, PIPELINE, ZERO2, ZERO3
from qlora_planner.memory.weights.placement import PlacedTensor, Placement
from qlora_planner.memory.weights.trainable import training_dtype, training_state
from qlora_planner.record import record

# accelerate's default for `reduce_bucket_size`, in elements of two bytes.
BUCKET_BYTES = 2 * 500_000_000
# The most that torch was seen to reserve over what is allocated, in 66 runs on one card.
MOST_RESERVED_OVER_ALLOCATED = 1.33


@record
class OneCard:
    """What one card holds that has the whole run to itself: peaks of loading and of training, in bytes that torch has
    allocated."""

    load: int
    training: int


@record
class Bounds:
    """Bytes that torch has allocated on the card that needs most, at the least and at the most, and the most that it
    reserves."""

    low: int
    high: int
    reserved: int
    why: str


@record
class _Stored:
    whole: int  # the model with its adapters, without constants
    constants: int
    layers: int
    layer: int
    root: int  # what is in no layer
    trained: int  # trainable parameters


def bounds_of(placement: Placement, trainer: TrainerRow, alone: OneCard, world: int) -> Bounds:
    """The bounds of a run on `world` cards by a strategy that is bounded."""
    strategy, on_card = placement.run.parallel, placement.run.load_on != "cpu"
    if strategy == PIPELINE:
        most = max(alone.load, alone.training)
        return Bounds(
            low=most // world, high=most, reserved=int(MOST_RESERVED_OVER_ALLOCATED * most),
            why=f"an even split leaves 1/{world} of what one card holds on each, and the card with the head holds more",
        )  # fmt: skip
    stored = _stored(placement, trainer, "float32" if strategy == FSDP1 else "bfloat16")
    held = stored.whole + stored.constants
    step = max(0, alone.training - held)  # what training holds beside the model
    optimizer = find_optimizer(placement.run.optimizer)
    assert optimizer is not None
    state = training_state(placement.trained, placement.run, trainer, optimizer)
    least = max(0, step - state.gradients - state.optimizer)
    share = -(-stored.whole // world) + stored.constants
    master = -(-4 * stored.trained // world)  # DeepSpeed trains a float32 copy, a part on each card
    if strategy == ZERO2:
        low, high = held + master + least, held + master + step + BUCKET_BYTES
        reserved = int(MOST_RESERVED_OVER_ALLOCATED * high)
        why = "the whole model and a step, up to a buffer of a gigabyte to reduce gradients in"
        return Bounds(low=max(low, alone.load), high=max(high, alone.load), reserved=reserved, why=why)
    if strategy == ZERO3:
        wrap = max(alone.load, held + stored.root)
        low, high = share + master + stored.whole, share + 2 * master + stored.whole + step + BUCKET_BYTES
        why = "a share of the model, all of it gathered in backward, and buffers of up to a gigabyte"
        low = max(low, alone.load)
    else:
        part = 1 + 1 / world
        of_cpu = share + 2 * stored.root
        of_card = max(held + part * stored.layer, held - stored.layers * (1 - 1 / world) + part * stored.root)
        wrap = max(alone.load, int(of_card)) if on_card else of_cpu
        low = max(int(0.97 * wrap), share + stored.root + least)
        high = share + stored.root + step + 2 * stored.layer
        why = "a share of the model, embedding and head gathered, and two layers at a time" + (
            "; wrapping holds the whole of it" if on_card else ""
        )
    # What wrapping leaves cached belongs to other streams than what a step gathers: neither is used for the other.
    return Bounds(low=low, high=max(wrap, high), reserved=wrap + high, why=why)


def _stored(placement: Placement, trainer: TrainerRow, adapters: str) -> _Stored:
    """Sums over the bill of tensors; `adapters` is the dtype that the engine trains 16-bit ones in."""
    profile = placement.profile
    weights = [tensor for tensor in placement.weights if not tensor.group.tied_with]
    kinds = {kind.name: 0 for kind in profile.layer_kinds}
    root = constants = trained = 0
    for tensor in weights:
        constants += sum(tensor.constant_bytes) * tensor.group.count
        size = tensor.kept_bytes * tensor.group.count
        if tensor.group.layer_kind in kinds:
            kinds[tensor.group.layer_kind] += size
        else:
            root += size
        trained += _own_trained(tensor)
    for added in placement.added:
        dtype = training_dtype(added.tensor.dtype, placement.run, trainer, added.tensor.shape)
        dtype = adapters if placement.run.parallel in (FSDP1, ZERO2, ZERO3) else dtype
        size = added.tensor.numel * added.tensor.count * DTYPE_BYTES[dtype]
        kind = None if added.adapter is None else added.adapter.layer_kind
        if kind in kinds:
            kinds[kind] += size
        else:
            root += size
        trained += added.tensor.numel * added.tensor.count
    layer = max((kinds[kind.name] // max(kind.count, 1) for kind in profile.layer_kinds), default=0)
    layers = sum(kinds.values())
    return _Stored(whole=layers + root, constants=constants, layers=layers, layer=layer, root=root, trained=trained)


def _own_trained(tensor: PlacedTensor) -> int:
    return 0 if tensor.trained is None else tensor.trained.numel * tensor.trained.count
