"""What a config means for one model: what its keys alone do not say."""

from __future__ import annotations

from dataclasses import replace

from qlora_planner.catalog.trainers import trainer_named
from qlora_planner.exchange.parsed_config import Reading
from qlora_planner.memory.records import Unmodelled
from qlora_planner.spec.model import ModelProfile


def meant(reading: Reading, profile: ModelProfile) -> Reading:
    """The reading with the names that this model has for its embedding and head, where added tokens train them.

    A loss that trl-sft's stands in for goes back to hf-trainer's where trl-sft cannot train the model.
    """
    if reading.trains_embeddings:
        reading = replace(reading, run=reading.run.with_(modules_to_save=",".join(_embeddings(profile))))
    standing_in = trainer_named(reading.run.trainer)
    if reading.loss_stands_in and standing_in.name in profile.refusals and standing_in.instead is not None:
        left = Unmodelled(key="the loss", what="makes no whole logits; modelled with them", direction="down")
        run = reading.run.with_(
            trainer=standing_in.instead, packing=False, padding=False if reading.run.packing else None
        )
        reading = replace(reading, run=run, unmodelled=(*reading.unmodelled, left))
    return reading


def _embeddings(profile: ModelProfile) -> list[str]:
    """The last names of the modules that turn tokens into vectors and back; a tied head is a module all the same."""
    roles = {"embedding": "embed_tokens", "output_head": "lm_head"}
    names = {}
    for role, usual in roles.items():
        modules = [group.name.rpartition(".")[0] for group in profile.tensors if group.role == role]
        names[role] = modules[0].rpartition(".")[2] if modules else usual
    return list(names.values())
