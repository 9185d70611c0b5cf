"""What a config means for one model: what its keys alone do not say."""

from __future__ import annotations

from dataclasses import replace

from qlora_planner.catalog.losses import FUSED_BY_LIGER, LIGER_FUSED
from qlora_planner.exchange.parsed_config import Reading
from qlora_planner.memory.records import Unmodelled
from qlora_planner.spec.model import ModelProfile


def meant(reading: Reading, profile: ModelProfile) -> Reading:
    """The reading with the names that this model has for its embedding and head, where added tokens train them.

    A loss that trl-sft's stands in for goes back to the model's own where trl-sft cannot train the model.
    """
    if reading.trains_embeddings:
        reading = replace(reading, run=reading.run.with_(modules_to_save=",".join(_embeddings(profile))))
    run, unknown = reading.run, reading.run.loss_kernel == LIGER_FUSED and profile.model_type not in FUSED_BY_LIGER
    if unknown:  # Liger leaves such a model as it is, and so its loss
        return replace(reading, run=run.with_(loss_kernel=None), stand_in=None)
    if reading.format == "llama-factory" and run.attention is None and profile.model_type == "gemma2":
        # LLaMA-Factory's `auto` (model_utils/attention.py): FlashAttention-2 where it is installed, else eager.
        left = Unmodelled(key="flash_attn: auto", what="FlashAttention-2 if flash-attn is installed", direction="down")
        reading = replace(reading, run=run.with_(attention="eager"), unmodelled=(*reading.unmodelled, left))
    stand_in = reading.stand_in
    trainer = None if stand_in is None else stand_in.changes.get("trainer")
    if reading.loss_stands_in and stand_in is not None and trainer in profile.refusals:
        names = ("trainer", "loss_kernel", "packing", "padding")
        kept = {name: value for name, value in stand_in.changes.items() if name not in names}
        left = Unmodelled(key="the loss", what="makes no whole logits; modelled with them", direction="down")
        changes = {**kept, "loss_kernel": None}
        reading = replace(reading, stand_in=replace(stand_in, changes=changes, unmodelled=(*stand_in.unmodelled, left)))
    return reading


def standing_in(reading: Reading) -> Reading:
    """The reading with the run that stands in for its own, where there is one."""
    if reading.stand_in is None:
        return reading
    run, things = reading.run.with_(**reading.stand_in.changes), reading.stand_in.unmodelled
    unmodelled = (*reading.unmodelled, *things)
    return replace(reading, run=run, unmodelled=unmodelled, stand_in=None, stands_for=reading.run)


def _embeddings(profile: ModelProfile) -> list[str]:
    """The last names of the modules that turn tokens into vectors and back; a tied head is a module all the same."""
    roles = {"embedding": "embed_tokens", "output_head": "lm_head"}
    names = {}
    for role, usual in roles.items():
        modules = [group.name.rpartition(".")[0] for group in profile.tensors if group.role == role]
        names[role] = modules[0].rpartition(".")[2] if modules else usual
    return list(names.values())
