"""A trainer that compiles its layers where it can, and moves weights by the memory that it finds free: traces have the
layers as they are written and all weights on the card, and how far that may be off is assumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qlora_planner.catalog.cuda import CUDNN_CAPABILITIES
from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.memory.records import Component, MemoryEstimate, Unmodelled
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.spec.model import ModelProfile

COMPILED = "UNSLOTH_BLOCK_COMPILE=1 (its default from torch 2.11 on)"
# unsloth 2026.10.9 utils/padding_choice.py: where it may make padded batches by itself, whose layers it then compiles.
PADS_BY_ITSELF = ("7.5", "8.0", "8.9", "12.0")
# unsloth 2026.10.9 utils/attention_dispatch.py: where cuDNN attends, each piece of a packed row is padded to so many
# tokens, and the shortest piece has one token that is scored.
_PIECE_TOKENS, _SHORTEST_PIECE = 128, 2


def of_layers(profile: ModelProfile, estimate: MemoryEstimate) -> Iterator[Unmodelled]:
    """What a traced step of such a trainer leaves open.

    Layers of rows end to end are not compiled, and packed rows are always so. Compiled, the backward of a gated MLP no
    longer writes over its own three tensors: three more of its width stand beside them. The scratch buffer for weights
    and the weight that is multiplied with are not there at that moment; at others two pools of a weight's size are.
    Without checkpointing the compiler chooses what every layer keeps.
    """
    run = estimate.run
    trainer = trainer_named(run.trainer)
    if estimate.method != TRACED or not trainer.compiles_layers:
        return
    peak = max(estimate.peak.device_bytes, 1)
    placement = Placement(profile, run)
    if not run.packing:
        weights = 2 * max(
            2 * weight.numel
            for kind in profile.layer_kinds
            for weight in placement.layer_weights(kind)
            if weight.group.role == "linear"
        )
        kept = 0 if run.gradient_checkpointing else estimate.components[Component.ACTIVATIONS.value]
        widths = 3 * 2 * int(profile.dims.get("intermediate_size") or 0) * run.batch_size * run.seq_len
        what = (
            "layers are simulated as they are written, and those of a padded batch are compiled: at the most three"
            " tensors of the MLP's width and two weights in 16 bits more, at the least two weights less"
        )
        for direction, reach in (("up", widths + weights + kept), ("down", weights + kept)):
            yield Unmodelled(key=COMPILED, what=what, direction=direction, at_most=round(reach / peak, 4))
    elif estimate.machine is not None and estimate.machine.gpus[0].compute_capability in CUDNN_CAPABILITIES:
        tokens = run.batch_size * run.seq_len
        most = padded_bytes(profile, (_PIECE_TOKENS // _SHORTEST_PIECE - 1) * tokens, bool(run.gradient_checkpointing))
        yield Unmodelled(
            key="the lengths of packed pieces",
            what=f"this card's attention pads each piece of a packed row to a multiple of {_PIECE_TOKENS} tokens, and"
            " pieces are simulated as long as rows: a part in a hundred for chats of some hundred tokens, several times"
            " what attention takes for a few words each",
            direction="up",
            at_most=round(most / peak, 4),
        )
    embedding = sum(2 * weight.group.numel for weight in placement.weights if weight.group.role == "embedding")
    yield Unmodelled(
        key='offload_embedding="auto" (its default)',
        what="where the card is short the embedding waits in host memory, which is not counted",
        direction="down",
        at_most=round(min(embedding / peak, 1.0), 4),
    )


def padded_bytes(profile: ModelProfile, tokens: int, gradient_checkpointing: bool) -> int:
    """What so many tokens of padding take in attention at the most.

    In one layer's backward queries, outputs and both their gradients, accumulators in float32 twice as wide, keys,
    values and theirs; without checkpointing what each layer keeps for it beside. Read off what lived at the peak of
    packed steps on an H200: 1,024 tokens in 60 pieces took 124 MB more than in one, and 401 MB without checkpointing,
    where this gives 136 and 464.
    """
    head = profile.dim("head_dim")
    queries, keys = (profile.dim(f"num_{kind}_heads") * head for kind in ("attention", "key_value"))
    kept = 0 if gradient_checkpointing else profile.layers * (2 * queries + 2 * keys)
    return 2 * tokens * (8 * queries + 4 * keys + kept)


def widened(estimate: MemoryEstimate) -> MemoryEstimate:
    """`estimate` with an interval that holds its layers compiled too, where the trainer may choose that by itself."""
    capability = None if estimate.machine is None else estimate.machine.gpus[0].compute_capability
    reaches = {thing.direction: thing.at_most for thing in estimate.unmodelled if thing.key == COMPILED}
    if not reaches or (capability is not None and capability not in PADS_BY_ITSELF):
        return estimate
    peak, size = estimate.peak, estimate.peak.device_bytes
    low = min(peak.low_bytes, round(size * (1 - (reaches["down"] or 0))))
    high = max(peak.high_bytes, round(size * (1 + (reaches["up"] or 0))))
    return replace(estimate, peak=replace(peak, low_bytes=low, high_bytes=high))
