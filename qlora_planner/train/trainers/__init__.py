"""The trainer of a run, one module each, behind the same verbs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_planner.catalog.trainers import owner_of, trainer_named
from qlora_planner.errors import InputError
from qlora_planner.spec.run import RunConfig
from qlora_planner.train.trainers import hf, loop, online, preference, sft, unsloth
from qlora_planner.train.trainers.protocol import AnyTrainer, TrainerModule

TRAINERS: Mapping[str, TrainerModule] = {
    "trl-sft": sft,
    "hf-trainer": hf,
    "loop": loop,
    "trl-dpo": preference,
    "trl-kto": preference,
    "trl-orpo": preference,
    "trl-reward": preference,
    "trl-grpo": online,
    "trl-rloo": online,
    "unsloth": unsloth,
}


def trainer_module(run: RunConfig) -> TrainerModule:
    """How the run's trainer is made."""
    return TRAINERS[trainer_named(run.trainer).name]


def build_trainer(
    model: Any, run: RunConfig, *, rows: list[list[int]], steps: int, folder: str, device: str
) -> AnyTrainer:
    """The run's trainer over tokenised `rows`, for `steps` optimizer steps, writing only under `folder`.

    Raises InputError for an option that this trainer does not have, and whatever the libraries refuse.
    """
    trainer = trainer_named(run.trainer)
    for option in trainer.lacks(run):
        flag = option.replace("_", "-")
        raise InputError(f"--{flag} is {owner_of(option).name}'s; {trainer.name} has no such option")
    return trainer_module(run).build(model, run, rows=rows, steps=steps, folder=folder, device=device)
