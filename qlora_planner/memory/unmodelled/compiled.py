"""A trainer that compiles its layers where it can, and moves weights by the memory that it finds free: traces have the
layers as they are written and all weights on the card, and how far that may be off is assumed."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.evidence.calibration import TRACED
from qlora_planner.memory.records import Component, MemoryEstimate, Unmodelled
from qlora_planner.memory.weights.placement import Placement
from qlora_planner.spec.model import ModelProfile


def of_layers(profile: ModelProfile, estimate: MemoryEstimate) -> Iterator[Unmodelled]:
    """What a traced step of such a trainer leaves open.

    Compiled, a layer takes no shared scratch buffer for its weights: at the most all of them are there in 16 bits at
    once, at the least none of them is. Its MLP is no longer one operator that writes over its own tensors: two of its
    width may live on. Without checkpointing the compiler chooses what every layer keeps.
    """
    run = estimate.run
    trainer = trainer_named(run.trainer)
    if estimate.method != TRACED or not trainer.compiles_layers:
        return
    peak = max(estimate.peak.device_bytes, 1)
    placement = Placement(profile, run)
    layer = max(
        sum(2 * weight.group.numel for weight in placement.layer_weights(kind) if weight.group.role == "linear")
        for kind in profile.layer_kinds
    )
    widest = int(profile.dims.get("intermediate_size") or 0)
    layer += 2 * 2 * widest * run.batch_size * run.seq_len
    if not run.gradient_checkpointing:
        layer += estimate.components[Component.ACTIVATIONS.value]
    yield Unmodelled(
        key="UNSLOTH_BLOCK_COMPILE=1 (its default from torch 2.11 on)",
        what="layers are played as they are written; compiled they are assumed to take at most a layer's weights in 16"
        " bits more or less, and two tensors of its MLP's width more",
        at_most=round(layer / peak, 4),
    )
    embedding = sum(2 * weight.group.numel for weight in placement.weights if weight.group.role == "embedding")
    yield Unmodelled(
        key='offload_embedding="auto" (its default)',
        what="where the card is short the embedding waits in host memory, which is not counted",
        direction="down",
        at_most=round(min(embedding / peak, 1.0), 4),
    )
