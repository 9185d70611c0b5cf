"""A trainer that casts embeddings and head back to 16 bits casts what is trained there too: that is not counted."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.memory.records import Component, MemoryEstimate, Unmodelled
from qlora_planner.memory.weights.placement import Placement, cast_back
from qlora_planner.spec.model import ModelProfile

_TRAINED = (Component.ADAPTERS, Component.GRADIENTS, Component.OPTIMIZER_STATES)


def of_trained(profile: ModelProfile, estimate: MemoryEstimate) -> Iterator[Unmodelled]:
    """Adapters and saved copies of what the run's trainer casts back: at most half of what is trained is less."""
    run = estimate.run
    if not trainer_named(run.trainer).casts_back(run):
        return
    if not any(added.base is not None and cast_back(added.base.group.name) for added in Placement(profile, run).added):
        return
    trained = sum(estimate.components[part.value] for part in _TRAINED)
    yield Unmodelled(
        key=f"--trainer {run.trainer}",
        what="it casts what is trained of embeddings and head to bfloat16 too, which is counted in float32",
        direction="down",
        at_most=round(trained / 2 / max(estimate.peak.device_bytes, 1), 4),
    )
