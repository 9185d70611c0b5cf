"""Kernels that take the place of a model's own loss: Liger's, whole or in part, and cut cross-entropy."""

from __future__ import annotations

from functools import wraps
from typing import Any

from qlora_planner.catalog.classifiers import labels_of
from qlora_planner.errors import RefusedError
from qlora_planner.spec.run import RunConfig

# What liger-kernel's functions call their kernels beside the fused loss (transformers/monkey_patch.py, 0.8.5).
_OTHER_PARTS = ("rope", "rms_norm", "layer_norm", "swiglu", "geglu", "cross_entropy")
# Fields of a config that scale logits after the head, which a loss that makes none would leave out.
_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")


def liger_parts(run: RunConfig) -> dict[str, bool] | None:
    """The kernels that Liger is told to exchange, by its own names, none for its usual ones; None for no Liger."""
    if labels_of(run) is not None:  # its fused loss is of words: Liger would put a language model's forward there
        return {"fused_linear_cross_entropy": False} if run.liger else None
    fused = run.loss_kernel == "liger-fused"
    if not run.liger:
        return {**dict.fromkeys(_OTHER_PARTS, False), "fused_linear_cross_entropy": True} if fused else None
    return {} if fused or run.loss_kernel is None else {"fused_linear_cross_entropy": False}


def apply_liger(base: Any, run: RunConfig, **options: bool) -> None:
    """Exchange what the run has Liger exchange; `options` win."""
    parts = liger_parts(run)
    if parts is not None:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model=base, **{**parts, **options})


def cut_cross_entropy(base: Any) -> None:
    """Let a causal language model compute its loss by cut_cross_entropy, from what goes into its head.

    As axolotl's plugin does: the loss of every label but the first, summed over the items of a whole batch where they
    are told. Raises RefusedError for a head with a bias, and for a model that scales its logits.
    """
    from cut_cross_entropy import linear_cross_entropy

    head, config = base.get_output_embeddings(), base.config.get_text_config()
    scaled = [name for name in _SCALES if getattr(config, name, None) not in (None, 1, 1.0)]
    if head is None or getattr(head, "bias", None) is not None or scaled:
        why = f"scales its logits by {scaled[0]}" if scaled else "has no plain output head"
        raise RefusedError(f"{type(base).__name__} {why}, which cut cross-entropy would leave out: --loss-kernel full")
    decoder, softcap = base.get_decoder(), getattr(config, "final_logit_softcapping", None)
    own = base.forward

    @wraps(own)
    def forward(*args: Any, labels: Any = None, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        if labels is None or args:
            return own(*args, labels=labels, **kwargs)
        from transformers.modeling_outputs import CausalLMOutputWithPast

        kwargs.pop("logits_to_keep", None)
        hidden = decoder(**{**kwargs, "return_dict": True}).last_hidden_state
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = linear_cross_entropy(hidden, head.weight, labels, softcap=softcap, shift=True, reduction=reduction)
        if num_items_in_batch is not None:
            loss = loss / num_items_in_batch
        return CausalLMOutputWithPast(loss=loss)

    base.forward = forward
