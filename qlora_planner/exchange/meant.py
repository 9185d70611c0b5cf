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
    reading = _named_by_pattern(reading, profile)
    run, unknown = reading.run, reading.run.loss_kernel == LIGER_FUSED and profile.model_type not in FUSED_BY_LIGER
    if unknown:  # Liger leaves such a model as it is, and so its loss
        return replace(reading, run=run.with_(loss_kernel=None), stand_in=None)
    if reading.format == "llama-factory":
        from qlora_planner.exchange.llama_factory.of_model import of_model

        reading = of_model(reading, profile)
    stand_in = reading.stand_in
    trainer = None if stand_in is None else stand_in.changes.get("trainer")
    if reading.loss_stands_in and stand_in is not None and trainer in profile.refusals:
        names = ("trainer", "loss_kernel", "packing", "padding")
        kept = {name: value for name, value in stand_in.changes.items() if name not in names}
        left = Unmodelled(key="the loss", what="makes no whole logits; modelled with them", direction="down")
        changes = {**kept, "loss_kernel": None}
        reading = replace(reading, stand_in=replace(stand_in, changes=changes, unmodelled=(*stand_in.unmodelled, left)))
    return reading


def _named_by_pattern(reading: Reading, profile: ModelProfile) -> Reading:
    """The reading with the modules that its pattern matches in this model, where it matches the same in every layer."""
    if reading.target_pattern is None:
        return reading
    from qlora_planner.exchange.patterns import named_by

    names = named_by(reading.target_pattern, profile)
    if names is None:
        return reading
    key = next(key for key in reading.not_modelled if key.startswith("lora_target_modules"))
    what = reading.not_modelled[key]
    return replace(
        reading,
        run=reading.run.with_(target_modules=names),
        used=(*reading.used, key),
        not_modelled={name: why for name, why in reading.not_modelled.items() if name != key},
        unmodelled=tuple(thing for thing in reading.unmodelled if thing.what != what),
        target_pattern=None,
    )


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
