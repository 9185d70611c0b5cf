"""One training step as each trainer computes it, one module a trainer and, where its loss changed, a version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn

from qlora_planner.catalog.trainers import Version
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers import (
    dpo,
    grpo,
    hf,
    kto,
    loop,
    orpo,
    reward,
    rloo,
    sft,
    sft_before_1_15,
    unsloth,
)
from qlora_planner.profiling.tracing.trainers.protocol import (
    GeneratingTrainer,
    PatchingTrainer,
    Precomputer,
    TracedTrainer,
)

# By trainer: the first version of the package that decides (see `TrainerRow.versioned_by`), newest first.
TRACERS: Mapping[str, tuple[tuple[Version, TracedTrainer], ...]] = {
    "trl-sft": (((1, 15), sft), ((0, 0), sft_before_1_15)),
    "hf-trainer": (((0, 0), hf),),
    "loop": (((0, 0), loop),),
    "trl-dpo": (((0, 0), dpo),),
    "trl-kto": (((0, 0), kto),),
    "trl-orpo": (((0, 0), orpo),),
    "trl-reward": (((0, 0), reward),),
    "trl-grpo": (((0, 0), grpo),),  # older ones are refused before they are traced
    "trl-rloo": (((0, 0), rloo),),
    "unsloth": (((0, 0), unsloth),),
}


def tracer_of(spec: TraceSpec) -> TracedTrainer:
    """How the run's trainer is traced."""
    return next(tracer for first, tracer in TRACERS[spec.trainer.name] if spec.trainer_version >= first)


def precomputer_of(spec: TraceSpec) -> Precomputer:
    """How what the run's trainer asks of its reference before training is traced."""
    tracer: Any = tracer_of(spec)
    return cast(Precomputer, tracer)


def patching_tracer_of(spec: TraceSpec) -> PatchingTrainer | None:
    """The same of a trainer that patches the libraries; None for any other."""
    return cast(PatchingTrainer, tracer_of(spec)) if spec.trainer.patches_libraries else None


def generating_tracer_of(spec: TraceSpec) -> GeneratingTrainer:
    """The same of a trainer whose row has a `generation`."""
    return cast(GeneratingTrainer, tracer_of(spec))


def evaluate(
    tracer: TracedTrainer, forward: Callable[..., Any], model: nn.Module, spec: TraceSpec, vocabulary: int
) -> None:
    """One evaluation batch: the loss alone, as `Trainer.evaluate` asks for where no metrics are computed."""
    from qlora_planner.profiling.tracing.images import with_images  # which needs the batches of this package

    sized = spec.with_run(batch_size=spec.run.eval_batch_size or 1)
    inputs = with_images(tracer.inputs(sized, vocabulary), sized, model.config)
    with torch.no_grad():
        loss, outputs = tracer.loss(forward, model, inputs, sized, training=False)
    tracer.evaluated(loss, sized.run.batch_size)
    del outputs
