"""The loss of SFTTrainer before 1.15, with the same tensors in the same order.

TRL 1.7 to 1.14 scores 256 tokens at a time under checkpointing; 1.6 and earlier build all logits, then read entropy
and accuracy from them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from qlora_planner.profiling.tracing.spec import TraceSpec
from qlora_planner.profiling.tracing.trainers.common import (
    IGNORED,
    Batch,
    apply_liger,
    loss_by_row,
    no_patches,
    without_cache,
)
from qlora_planner.profiling.tracing.trainers.sft import balance_experts, inputs

CHUNK = 256  # tokens; trl/trainer/sft_trainer.py, _CHUNKED_LM_HEAD_CHUNK_SIZE
ENTROPY_ROWS = 128  # trl/trainer/utils.py, entropy_from_logits

patches, evaluated = no_patches, loss_by_row
__all__ = ("evaluated", "inputs", "loss", "patches", "prepare")


def prepare(base: nn.Module, spec: TraceSpec) -> None:
    """See TracedTrainer."""
    balance_experts(base, spec)
    apply_liger(base, spec)
    _add_chunked_head(base, spec)
    without_cache(base)


def loss(
    forward: Callable[..., Any], model: nn.Module, inputs: Batch, spec: TraceSpec, training: bool = True
) -> tuple[Any, Any]:
    """The loss alone: no outputs are kept."""
    items = torch.empty((), dtype=torch.int64, device="cuda")
    return _older_loss(forward, dict(inputs), items, spec), None


def _older_loss(forward: Callable[..., Any], inputs: Batch, items: Any, spec: TraceSpec) -> Any:
    """The loss of one micro-batch."""
    if spec.trainer_version >= (1, 7):
        return forward(**inputs, num_items_in_batch=items)["loss"]
    outputs = forward(**inputs, use_cache=False, num_items_in_batch=items)
    loss = outputs["loss"]
    copies = spec.trainer_version < (1, 4)
    with torch.no_grad():
        logits = outputs.logits[..., :-1, :]
        logits = logits.contiguous() if copies else logits
        labels = inputs["labels"][..., 1:].contiguous()
        rows = []
        for part in logits.reshape(-1, logits.shape[-1]).split(ENTROPY_ROWS, dim=0):
            log_p = functional.log_softmax(part, dim=-1)
            rows.append(-(torch.exp(log_p) * log_p).sum(-1))
        entropy = torch.cat(rows).reshape(logits.shape[:-1])
        (entropy * (labels != IGNORED)).sum()
        del log_p, part, rows, entropy
        again = outputs.logits[..., :-1, :]
        logits = again.contiguous() if copies else again
        ((logits.argmax(dim=-1) == labels) & (labels != IGNORED)).sum()
    return loss


def _add_chunked_head(base: Any, spec: TraceSpec) -> None:
    """Replace the model's forward by one that scores a chunk of tokens at a time."""
    if not (1, 7) <= spec.trainer_version < (1, 15):
        return
    config = base.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", 1.0)
    head = base.get_output_embeddings()
    widens = spec.trainer_version < (1, 14)
    balanced = bool(getattr(config, "output_router_logits", False))

    def chunk(hidden: Any, weight: Any, bias: Any, labels: Any) -> Any:
        logits = hidden.float() @ weight.float().t() if widens else (hidden @ weight.to(hidden.dtype).t()).float()
        if bias is not None:
            logits = logits + bias.float()
        if scale != 1.0:
            logits = logits * scale
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        log_p = functional.log_softmax(logits, dim=-1)
        loss = functional.nll_loss(log_p, labels, ignore_index=IGNORED, reduction="sum")
        valid = labels != IGNORED
        correct = ((logits.argmax(dim=-1) == labels) & valid).sum().float()
        entropy = (-(log_p.exp() * log_p).sum(dim=-1) * valid).sum()
        return loss, correct, entropy

    def forward(input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        items = kwargs.pop("num_items_in_batch", None)
        kwargs.pop("use_cache", None)
        if balanced:
            kwargs["output_router_logits"] = True
        outputs = base.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **kwargs)
        states = outputs.last_hidden_state
        hidden = states[..., :-1, :].reshape(-1, states.size(-1))
        targets = labels[..., 1:].reshape(-1)
        valid = targets != IGNORED
        order = valid.to(torch.int8).argsort(descending=True, stable=True)
        hidden, targets = hidden[order], targets[order]
        loss = hidden.new_zeros((), dtype=torch.float32)
        correct, entropy = loss, loss
        for start in range(0, hidden.shape[0], CHUNK):
            part = checkpoint(
                chunk,
                hidden[start : start + CHUNK],
                head.weight,
                head.bias,
                targets[start : start + CHUNK],
                use_reentrant=False,
            )
            loss, correct, entropy = loss + part[0], correct + part[1], entropy + part[2]
        loss = loss / (valid.sum() if items is None else items)
        if balanced:
            from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

            routers = outputs.router_logits
            aux = load_balancing_loss_func(routers, config.num_experts, config.num_experts_per_tok, attention_mask)
            loss = loss + config.router_aux_loss_coef * aux
        return {"loss": loss, "correct": correct, "entropy": entropy}

    base.forward = forward
