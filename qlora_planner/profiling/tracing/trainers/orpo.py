"""A step of trl's ORPOTrainer: pairs through the policy, whole logits, and its own loss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import nn

from qlora_planner.profiling.tracing.cuda import one_pass_scores
from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers import preference, reward
from qlora_planner.profiling.tracing.trainers.common import IGNORED, Batch, loss_by_row
from qlora_planner.train.quiet_imports import trl_module

patches, prepare, evaluated = one_pass_scores.patches, reward.prepare, loss_by_row


def inputs(spec: TraceSpec, vocabulary: int) -> Batch:
    """Chosen and rejected sequences apart, as trl's collator lays them out."""
    return preference.placed(spec, lambda: collated(spec, vocabulary))


def collated(spec: TraceSpec, vocabulary: int) -> dict[str, Any]:
    """The same with real tensors on the host."""
    pairs = spec.sequences // 2
    rows = preference.token_lists(spec, vocabulary, "ids", 2 * pairs)
    sides = zip(rows[:pairs], rows[pairs:], strict=True)
    examples = [{**_side("chosen", chosen), **_side("rejected", rejected)} for chosen, rejected in sides]
    for example, row in zip(examples, rows[:pairs], strict=True):
        example |= {"prompt_input_ids": row["prompt_ids"], "prompt_attention_mask": [1] * len(row["prompt_ids"])}
    return dict(trl_module("trl.experimental.utils").DPODataCollatorWithPadding(pad_token_id=0)(examples))


def _side(name: str, row: dict[str, list[int]]) -> dict[str, list[int]]:
    """One of a pair, behind its prompt, which carries no loss."""
    prompt, ids = row["prompt_ids"], row["ids"]
    return {
        f"{name}_input_ids": prompt + ids,
        f"{name}_attention_mask": [1] * len(prompt + ids),
        f"{name}_labels": [IGNORED] * len(prompt) + ids,
    }


def loss(
    forward: Callable[..., Any], model: nn.Module, inputs: Batch, spec: TraceSpec, training: bool = True
) -> tuple[Any, Any]:
    """ORPOTrainer's own loss, which keeps no outputs."""
    config: Any = model.config
    device = inputs["chosen_input_ids"].device
    run = spec.run
    trainer = preference.with_attributes(
        trl_module("trl.experimental.orpo").ORPOTrainer, model=model, beta=0.1 if run.beta is None else run.beta,
        is_encoder_decoder=False, padding_value=0,
        accelerator=SimpleNamespace(device=device, gather_for_metrics=lambda tensor: tensor),
        args=SimpleNamespace(device=device), aux_loss_enabled=getattr(config, "output_router_logits", False),
        aux_loss_coef=getattr(config, "router_aux_loss_coef", 0.0),
        _stored_metrics=defaultdict(lambda: defaultdict(list)),
        _peft_has_been_casted_to_bf16=run.quant in ("nf4", "fp4") and run.compute_dtype == "bfloat16",
    )  # fmt: skip
    return preference.loss_of(trainer, forward, model, inputs)


__all__ = ("evaluated", "inputs", "loss", "patches", "prepare")
